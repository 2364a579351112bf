"""A small picture as a data address: a PNG of sixteen colours, its bytes the same on every machine.

The pixels are stored, not compressed: what a compressor makes of them differs between versions of zlib, and four bits a pixel
are small enough. Colours carry their own opacity, so that the paper of a light or dark page shows through.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

COLOURS = 16
Colour = tuple[int, int, int, int]  # red, green, blue, opacity, 0 to 255
LONGEST_BLOCK = 65_535


def address(rows: Sequence[Sequence[int]], palette: Sequence[Colour]) -> str:
    """`rows` of palette indices below 16, all equally long and at least one, as `data:image/png;base64,...`."""
    width, height = len(rows[0]), len(rows)
    parts = (
        _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 4, 3, 0, 0, 0)),
        _chunk(b"PLTE", bytes(part for colour in palette for part in colour[:3])),
        _chunk(b"tRNS", bytes(colour[3] for colour in palette)),
        _chunk(b"IDAT", _stored(b"".join(b"\0" + _packed(row) for row in rows))),
        _chunk(b"IEND", b""),
    )
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode()


def _packed(row: Sequence[int]) -> bytes:
    """Two pixels a byte, the left one in the upper half."""
    even = [*row, 0] if len(row) % 2 else row
    return bytes(left << 4 | right for left, right in zip(even[::2], even[1::2], strict=True))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _stored(content: bytes) -> bytes:
    """A zlib stream of stored blocks (RFC 1950, RFC 1951 section 3.2.4)."""
    starts = range(0, len(content), LONGEST_BLOCK)
    blocks = [content[start : start + LONGEST_BLOCK] for start in starts]
    written = (
        struct.pack("<BHH", block is blocks[-1], len(block), len(block) ^ 0xFFFF) + block for block in blocks
    )
    return b"\x78\x01" + b"".join(written) + struct.pack(">I", zlib.adler32(content))
