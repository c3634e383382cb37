"""Writes the pictures of a colour font with bitmaps (Noto Color Emoji: Debian's fonts-noto-color-emoji) as PNG files.

    pip install fonttools
    python tools/data/emoji.py NotoColorEmoji.ttf emoji

Each picture is 136 wide and 128 high, with transparency, and named after its glyph.
"""

import sys
from pathlib import Path

from fontTools.ttLib import TTFont


def main(font, folder):
    folder.mkdir(parents=True, exist_ok=True)
    pictures = TTFont(font)["CBDT"].strikeData[0]
    written = 0
    for name, glyph in pictures.items():
        if glyph.imageData.startswith(b"\x89PNG"):
            (folder / f"{name}.png").write_bytes(glyph.imageData)
            written += 1
    print(f"{written} pictures in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
