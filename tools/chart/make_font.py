"""Rasterises the letters of charts: crates/eval/font/dejavu.bin.

    python make_font.py DejaVuSans.ttf DejaVuSans-Bold.ttf OUT.bin

Needs pillow. The fonts stand in matplotlib's package. Two faces, each: the height of its letters
above the baseline in pixels (u8), and for every character of ASCII from space to tilde the advance
(u8), how far its picture stands right of the pen (i8) and below the top of the line (i8), its width
and height (u8 each) and as many bytes of coverage, row by row.
"""

import struct
import sys

from PIL import ImageFont

SIZES = (24, 30)


def face(path: str, size: int) -> bytes:
    font = ImageFont.truetype(path, size)
    ascent, _ = font.getmetrics()
    out = struct.pack("B", ascent)
    for code in range(0x20, 0x7F):
        character = chr(code)
        left, top, right, bottom = font.getbbox(character)
        mask = bytes(font.getmask(character, mode="L"))
        width, height = right - left, bottom - top
        if width * height != len(mask):
            width, height = font.getmask(character, mode="L").size
        advance = round(font.getlength(character))
        out += struct.pack("BbbBB", advance, left, top, width, height) + mask
    return out


def main() -> None:
    regular, bold, out = sys.argv[1:]
    with open(out, "wb") as file:
        file.write(face(regular, SIZES[0]) + face(bold, SIZES[1]))


if __name__ == "__main__":
    main()
