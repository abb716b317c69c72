"""Before a run every image is known to be readable: what is broken, what is converted, what is kept."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from torchvision.io import ImageReadMode, decode_image

import data.check
from data.check import Checked, check_images, sort_out
from deploy.errors import LabError
from deploy.preprocess import load_image
from tests.pictures import ORIENTATION, save, scene


def check(cache_dir: Path, *paths: Path) -> list[Checked]:
    return check_images([str(path) for path in paths], cache_dir, 2, lambda number: None)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG file, whatever its header claims."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def cut(number: int) -> Callable[[Path], object]:
    """A file without its last bytes."""
    return lambda path: path.write_bytes(save(path, 90, 120).read_bytes()[:-number])


def zeroed(start: float, end: float, mode: str = "RGB") -> Callable[[Path], object]:
    """A file with zeros from one share of its length to another."""

    def make(path: Path) -> None:
        content = bytearray(save(path, 90, 120, mode=mode).read_bytes())
        hole = slice(int(start * len(content)), int(end * len(content)))
        content[hole] = bytes(len(content[hole]))
        path.write_bytes(content)

    return make


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty.jpg": (Path.touch, "0 bytes"),
    "cut.jpg": (cut(500), "truncated"),
    "no_end.jpg": (cut(2), "truncated"),
    "cut.png": (cut(500), "truncated"),
    "no_end.png": (cut(12), "truncated"),
    "torn_end.png": (cut(2), "truncated"),
    "half_empty.jpg": (zeroed(0.5, 1), "truncated"),
    "half_empty.png": (zeroed(0.5, 1), "checksum"),
    "hole.png": (zeroed(0.5, 0.51), "checksum"),
    "hole_in_palette.png": (zeroed(0.5, 0.51, "P"), "checksum"),
    "header_only.jpg": (lambda path: path.write_bytes(b"\xff\xd8\xff\xe0"), "cannot identify"),
    "text.jpg": (lambda path: path.write_text("<html>not found</html>"), "cannot identify"),
    "dangling.jpg": (lambda path: path.symlink_to("nowhere.jpg"), "leads nowhere"),
    "bomb.png": (lambda path: path.write_bytes(png(60_000, 60_000, 8, 2, b"")), "DecompressionBomb"),
    "absurd.png": (lambda path: path.write_bytes(png(2**31 - 1, 2**31 - 1, 8, 2, b"")), ""),
    "no_rows.png": (lambda path: path.write_bytes(png(0, 0, 8, 2, b"")), ""),
    "less_than_claimed.png": (lambda path: path.write_bytes(png(900, 900, 8, 2, bytes(500))), ""),
    "no_range.tif": (lambda path: Image.fromarray(np.ones((9, 9), np.float32)).save(path), "no known range"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_broken_with_the_reason(tmp_path: Path, name: str) -> None:
    make, reason = BROKEN[name]
    make(tmp_path / name)
    (checked,) = check(tmp_path / "cache", tmp_path / name)
    assert checked.broken
    assert (checked.path, checked.height, checked.width) == (str(tmp_path / name), 0, 0)
    assert reason in checked.note != ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads files whatever their mode")
def test_a_file_that_may_not_be_read_is_broken(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", 20, 20)
    path.chmod(0)
    (checked,) = check(tmp_path / "cache", path)
    assert checked.broken
    assert "Permission" in checked.note


def test_a_name_that_is_not_utf_8_is_broken_and_ends_nothing(tmp_path: Path) -> None:
    path = save(tmp_path / os.fsdecode(b"caf\xe9.jpg"), 20, 20)
    checked = check(tmp_path / "cache", path)
    assert checked[0].broken
    keep, _ = sort_out(checked, "quarantine", tmp_path / "images.tsv")
    assert keep == [False]


@pytest.mark.parametrize(
    ("name", "mode", "orientation", "shape"),
    [
        ("rgb.jpg", "RGB", None, (40, 60)),
        ("grey.jpg", "L", None, (40, 60)),
        ("rgb.png", "RGB", None, (40, 60)),
        ("grey.PNG", "L", None, (40, 60)),
        ("upside_down.jpg", "RGB", 3, (40, 60)),
        ("on_its_side.jpg", "RGB", 6, (60, 40)),
        ("on_its_side.png", "RGB", 8, (60, 40)),
        ("wrong_suffix.gif", "RGB", None, (40, 60)),
    ],
)
def test_what_all_decoders_read_alike_is_kept(
    tmp_path: Path, name: str, mode: str, orientation: int | None, shape: tuple[int, int]
) -> None:
    path = tmp_path / name
    if name == "wrong_suffix.gif":
        save(tmp_path / "a.jpg", 40, 60).rename(path)
    else:
        save(path, 40, 60, mode=mode, orientation=orientation)
    (checked,) = check(tmp_path / "cache", path)
    assert checked == Checked(str(path), *shape, note="", broken=False)


def gif_named_jpg(path: Path) -> None:
    save(path.with_suffix(".gif"), 40, 60, mode="P").rename(path)


def rgb_of_16_bit(path: Path) -> None:
    rows = [b"\0" + row.astype(">u2").tobytes() for row in scene(40, 60).astype(np.uint16) * 257]
    path.write_bytes(png(60, 40, 16, 2, b"".join(rows)))


def orientation_in_text(path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(exif.tobytes()):8}\n{exif.tobytes().hex()}\n")
    Image.fromarray(scene(40, 60)).save(path, pnginfo=info)


def orientation_in_xmp(path: Path) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    Image.fromarray(scene(40, 60)).save(path, xmp=xmp)


CONVERTED: dict[str, tuple[Callable[[Path], object], str, tuple[int, int]]] = {
    "cmyk.jpg": (lambda path: save(path, 40, 60, mode="CMYK"), "JPEG in mode CMYK", (40, 60)),
    "palette.png": (lambda path: save(path, 40, 60, mode="P"), "PNG in mode P", (40, 60)),
    "one_bit.png": (lambda path: save(path, 40, 60, mode="1"), "PNG in mode 1", (40, 60)),
    "transparent.png": (lambda path: save(path, 40, 60, mode="RGBA"), "PNG in mode RGBA", (40, 60)),
    "grey_alpha.png": (lambda path: save(path, 40, 60, mode="LA"), "PNG in mode LA", (40, 60)),
    "sixteen_bit.png": (rgb_of_16_bit, "16 bits", (40, 60)),
    "gif.jpg": (gif_named_jpg, "GIF in mode", (40, 60)),
    "photo.webp": (lambda path: save(path, 40, 60), "WEBP in mode RGB", (40, 60)),
    "side.tif": (lambda path: save(path, 40, 60, orientation=6), "TIFF in mode RGB", (60, 40)),
    "side_cmyk.jpg": (lambda path: save(path, 40, 60, mode="CMYK", orientation=5), "CMYK", (60, 40)),
    "side_text.png": (orientation_in_text, "orientation outside of EXIF", (60, 40)),
    "side_xmp.jpg": (orientation_in_xmp, "orientation outside of EXIF", (60, 40)),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_anything_else_is_converted_once_to_an_upright_rgb_png(tmp_path: Path, name: str) -> None:
    make, reason, shape = CONVERTED[name]
    make(tmp_path / name)
    (checked,) = check(tmp_path / "cache", tmp_path / name)
    assert not checked.broken
    assert reason in checked.note
    assert Path(checked.path).parent == tmp_path / "cache" / "converted"
    assert (checked.height, checked.width) == shape

    original = load_image(tmp_path / name)
    copy = decode_image(checked.path, ImageReadMode.RGB, apply_exif_orientation=True)
    assert copy.dtype == torch.uint8
    assert np.array_equal(copy.permute(1, 2, 0).numpy(), original)
    assert np.array_equal(load_image(checked.path), original)
    assert [path.suffix for path in (tmp_path / "cache" / "converted").iterdir()] == [".png"]


def test_sixteen_bit_grey_keeps_its_shades(tmp_path: Path) -> None:
    shades = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(shades).save(tmp_path / "grey.png")
    (checked,) = check(tmp_path / "cache", tmp_path / "grey.png")
    assert np.array_equal(load_image(checked.path)[..., 0], shades >> 8)


@pytest.fixture
def mixed(tmp_path: Path) -> list[Checked]:
    """A good file, a broken one, a good one, a broken one, and one that is converted."""
    paths = [tmp_path / f"{name}.jpg" for name in ("good", "empty", "good too", "text", "cmyk")]
    save(paths[0], 20, 30)
    paths[1].touch()
    save(paths[2], 30, 20)
    paths[3].write_text("no image")
    save(paths[4], 20, 20, mode="CMYK")
    return check(tmp_path / "cache", *paths)


def test_stop_names_every_broken_file_in_one_error(tmp_path: Path, mixed: list[Checked]) -> None:
    with pytest.raises(LabError) as caught:
        sort_out(mixed, "stop", tmp_path / "run" / "images.tsv")
    message = str(caught.value)
    assert message.startswith("2 of 5 images cannot be read:")
    assert f"{mixed[1].path}: 0 bytes" in message
    assert mixed[3].path in message
    assert "good" not in message
    assert "data.on_bad=quarantine" in message
    assert (tmp_path / "run" / "images.tsv").read_text().count("broken\t") == 2


def test_a_long_list_of_broken_files_is_cut_short_in_the_error_only(tmp_path: Path) -> None:
    checked = [Checked(f"{n}.jpg", 0, 0, "0 bytes", True) for n in range(30)]
    with pytest.raises(LabError, match=r"and 10 more, all in .*images\.tsv") as caught:
        sort_out(checked, "stop", tmp_path / "images.tsv")
    assert str(caught.value).count("0 bytes") == 20
    assert len((tmp_path / "images.tsv").read_text().splitlines()) == 30


def test_quarantine_leaves_the_broken_out_and_says_so(tmp_path: Path, mixed: list[Checked]) -> None:
    report = tmp_path / "run" / "images.tsv"
    keep, summary = sort_out(mixed, "quarantine", report)
    assert keep == [True, False, True, False, True]
    assert summary[0] == "5 images checked, 1 converted, 2 broken"
    assert str(report) in summary[1]
    assert [line.split("\t")[:2] for line in report.read_text().splitlines()] == [
        ["broken", mixed[1].path],
        ["broken", mixed[3].path],
        ["converted", mixed[4].path],
    ]


def test_the_second_check_opens_no_good_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [save(tmp_path / "a.jpg", 20, 30), save(tmp_path / "b.png", 9, 9, mode="P")]
    first = check(tmp_path / "cache", *paths)
    monkeypatch.setattr(data.check, "check_image", opens_nothing)
    counted: list[int] = []
    assert check_images([str(p) for p in paths], tmp_path / "cache", 1, counted.append) == first
    assert sum(counted) == 2


def opens_nothing(path: str, *others: object) -> Checked:
    raise AssertionError(f"{path} is opened again")


def test_a_changed_file_is_checked_again(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", 20, 30)
    os.utime(path, (1, 1))
    before = check(tmp_path / "cache", path)
    save(path, 50, 30)
    os.utime(path, (1, 1))
    assert (before[0].height, check(tmp_path / "cache", path)[0].height) == (20, 50)
    path.write_bytes(bytes(path.stat().st_size))
    assert check(tmp_path / "cache", path)[0].broken, "as large as before, but of another time"


def test_a_broken_file_is_checked_again(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", 20, 30)
    times = (1, 1)
    good = path.read_bytes()
    path.write_bytes(bytes(len(good)))
    os.utime(path, times)
    assert check(tmp_path / "cache", path)[0].broken
    path.write_bytes(good)
    os.utime(path, times)
    assert not check(tmp_path / "cache", path)[0].broken


def test_a_converted_copy_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", 20, 30, mode="P")
    (copy,) = check(tmp_path / "cache", path)
    Path(copy.path).unlink()
    assert check(tmp_path / "cache", path) == [copy]
    assert Path(copy.path).exists()


def test_a_torn_cache_is_survived_and_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [save(tmp_path / f"{n}.jpg", 20, 30) for n in range(3)]
    first = check(tmp_path / "cache", *paths)
    cache_file = tmp_path / "cache" / "checked.jsonl"
    cache_file.write_bytes(cache_file.read_bytes()[:-20])
    assert check(tmp_path / "cache", *paths) == first
    monkeypatch.setattr(data.check, "check_image", opens_nothing)
    assert check(tmp_path / "cache", *paths) == first


def test_the_order_is_that_of_the_paths_and_every_file_is_counted(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{n}.png", 5 + n, 7) for n in range(9)]
    check(tmp_path / "cache", *paths[::2])
    counted: list[int] = []
    checked = check_images([str(p) for p in paths], tmp_path / "cache", 3, counted.append)
    assert [c.height for c in checked] == list(range(5, 14))
    assert sum(counted) == 9
