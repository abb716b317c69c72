"""Uploads decoded within bounds, frames encoded for viewers."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deploy.demo.limits import MAX_PIXELS, MAX_SHOWN_SIDE
from deploy.demo.picture_size import KINDS, picture_size
from deploy.demo.pictures import decode_upload, encode_frame
from deploy.errors import LabError

FORMS: list[tuple[str, dict[str, Any]]] = [
    ("JPEG", {}), ("JPEG", {"progressive": True}), ("JPEG", {"comment": b"\xff\xd8\xff\xc0 x"}), ("PNG", {}),
    ("GIF", {}), ("BMP", {}), ("WEBP", {}), ("WEBP", {"lossless": True}),
    ("WEBP", {"exif": b"Exif\x00\x00x"}),
]  # fmt: skip


def encoded(
    kind: str,
    size: tuple[int, int] = (61, 37),
    mode: str = "RGB",
    picture: Image.Image | None = None,
    **options: Any,
) -> bytes:
    """A file of one colour, or of `picture`."""
    buffer = io.BytesIO()
    (picture or Image.new(mode, size, (200, 30, 40) if mode == "RGB" else 0)).save(buffer, kind, **options)
    return buffer.getvalue()


def png_bomb(width: int, height: int) -> bytes:
    """A true PNG of one colour: a million times smaller than what it decodes to."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    squeezer = zlib.compressobj(1)
    rows = b"".join([*(squeezer.compress(bytes(width // 8 + 1)) for _ in range(height)), squeezer.flush()])
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("kind", "options"), FORMS)
def test_the_header_says_what_pillow_says(kind: str, options: dict[str, Any]) -> None:
    for size in ((61, 37), (1, 1), (300, 7)):
        assert picture_size(encoded(kind, size, **options)) == (kind, *size)


def test_a_header_that_ends_early_is_none() -> None:
    for kind, options in FORMS:
        whole = encoded(kind, **options)
        for length in range(10):
            assert picture_size(whole[:length]) is None
    assert picture_size(b"\xff\xd8\xff\xd9") is None
    assert picture_size(b"\xff\xd8" + b"\xff" * 5000) is None
    assert picture_size(b"II*\0" + bytes(100)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_an_upload_is_decoded(kind: str) -> None:
    image = decode_upload(encoded(kind))
    assert image.shape == (37, 61, 3)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - (200, 30, 40)).max() <= 4


def test_an_upload_stands_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_upload(encoded("JPEG", exif=exif)).shape == (61, 37, 3)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "no picture that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "no picture that can be read"),
        (encoded("TIFF"), "no picture that can be read"),
        (encoded("PNG", mode="I;16"), "more than 8 bits a channel"),
        (encoded("PNG")[:-30], "cannot be read as an image"),
        (encoded("JPEG")[:-300], "cannot be read as an image"),
        (png_bomb(60_000, 60_000 // 100), "60000 x 600 pixels, at most 16 million"),
        (encoded("BMP")[:18] + struct.pack("<ii", 30_000, -30_000) + bytes(100), "30000 x 30000 pixels"),
        (
            b"\x89PNG\r\n\x1a\n" + bytes(8) + struct.pack(">II", 2**31, 2**31) + bytes(50),
            "at most 16 million",
        ),
        (b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03", "65535 x 65535 pixels"),
    ],
)
def test_what_is_no_upload_is_refused_in_one_line(body: bytes, reason: str) -> None:
    with pytest.raises(LabError, match=reason) as caught:
        decode_upload(body)
    assert "\n" not in str(caught.value)


def test_the_largest_that_is_taken() -> None:
    side = int(MAX_PIXELS**0.5)
    assert decode_upload(png_bomb(side, side)).shape == (side, side, 3)


def test_a_decoder_of_another_format_is_never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """EPS would start Ghostscript, which writes files."""
    asked: list[object] = []
    real = Image.open

    def spy(file: io.BytesIO, formats: object = None) -> Image.Image:
        asked.append(formats)
        return real(file, formats=list(KINDS))

    monkeypatch.setattr(Image, "open", spy)
    decode_upload(encoded("PNG"))
    assert asked == [KINDS]


def test_a_frame_for_viewers() -> None:
    image = np.full((480, 640, 3), (10, 120, 240), np.uint8)
    shown = np.asarray(Image.open(io.BytesIO(encode_frame(image))))
    assert shown.shape == image.shape
    assert np.abs(shown.astype(int) - image).max() <= 4


@pytest.mark.parametrize("shape", [(1080, 1920), (4000, 3000), (1, 5000), (MAX_SHOWN_SIDE, MAX_SHOWN_SIDE)])
def test_a_large_frame_is_made_smaller_for_viewers(shape: tuple[int, int]) -> None:
    shown = Image.open(io.BytesIO(encode_frame(np.zeros((*shape, 3), np.uint8))))
    assert max(shown.size) <= MAX_SHOWN_SIDE
    assert min(shown.size) >= 1


def test_opencv_does_the_same_where_pillow_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cv2", reason="needs OpenCV: pip install opencv-python-headless")
    pictures = [encoded(kind) for kind in ("JPEG", "PNG", "WEBP", "BMP")]
    # A header that OpenCV raises for, and an end that it returns nothing for.
    broken = [b"BM" + bytes(12) + struct.pack("<Iii", 40, 2, 2**23 - 2**22), encoded("PNG")[:60]]
    monkeypatch.setitem(sys.modules, "PIL", None)
    for whole in pictures:
        assert np.abs(decode_upload(whole).astype(int) - (200, 30, 40)).max() <= 4
    for part in broken:
        with pytest.raises(LabError, match="cannot be read as an image"):
            decode_upload(part)
    assert decode_upload(encode_frame(np.zeros((1080, 1920, 3), np.uint8))).shape == (540, 960, 3)
