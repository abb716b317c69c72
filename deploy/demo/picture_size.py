"""Kind and size of an encoded picture by its header alone, before a decoder sees it.

Pillow and OpenCV each know dozens of formats and have limits of their own, set in different ways; what is not
one of these five, or says that it is too large, reaches neither. Sources: ITU-T T.81 B.2.2 (JPEG), PNG 11.2.2
(IHDR), GIF89a 18, RFC 9649 (WebP), BITMAPINFOHEADER and BITMAPCOREHEADER (BMP).
"""

from __future__ import annotations

import struct

KINDS = ("JPEG", "PNG", "GIF", "WEBP", "BMP")
_NO_SIZE = frozenset({0x01, *range(0xD0, 0xD9)})
"""JPEG markers without a length: TEM, RST0 to RST7, SOI."""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""JPEG's SOF markers; C4, C8 and CC are tables and a reserved one."""


def picture_size(encoded: bytes) -> tuple[str, int, int] | None:
    """One of KINDS, width and height in px; None where it is none of them or ends before its size."""
    try:
        if encoded[:2] == b"\xff\xd8":
            return _jpeg(encoded)
        if encoded[:8] == b"\x89PNG\r\n\x1a\n":
            return "PNG", *_two(">II", encoded, 16)
        if encoded[:6] in (b"GIF87a", b"GIF89a"):
            return "GIF", *_two("<HH", encoded, 6)
        if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
            return _webp(encoded)
        if encoded[:2] == b"BM":
            return _bmp(encoded)
    except (struct.error, IndexError):
        pass
    return None


def _two(layout: str, encoded: bytes, offset: int) -> tuple[int, int]:
    first, second = struct.unpack_from(layout, encoded, offset)
    return first, second


def _jpeg(encoded: bytes) -> tuple[str, int, int] | None:
    at = 2
    while True:
        at = encoded.find(b"\xff", at)
        if at < 0:
            return None
        while encoded[at] == 0xFF:
            at += 1
        marker = encoded[at]
        at += 1
        if marker in _FRAMES:
            height, width = _two(">HH", encoded, at + 3)
            return "JPEG", width, height
        if marker == 0xD9:
            return None
        if marker != 0 and marker not in _NO_SIZE:
            at += struct.unpack_from(">H", encoded, at)[0]


def _webp(encoded: bytes) -> tuple[str, int, int] | None:
    chunk = encoded[12:16]
    if chunk == b"VP8X":
        width = int.from_bytes(encoded[24:27], "little") + 1
        height = int.from_bytes(encoded[27:30], "little") + 1
        return ("WEBP", width, height) if len(encoded) >= 30 else None
    if chunk == b"VP8L":
        bits = struct.unpack_from("<I", encoded, 21)[0]
        return "WEBP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 ":
        width, height = _two("<HH", encoded, 26)
        return "WEBP", width & 0x3FFF, height & 0x3FFF
    return None


def _bmp(encoded: bytes) -> tuple[str, int, int]:
    if struct.unpack_from("<I", encoded, 14)[0] == 12:
        return "BMP", *_two("<HH", encoded, 18)
    width, height = _two("<ii", encoded, 18)  # a negative height is a picture from the top down
    return "BMP", abs(width), abs(height)
