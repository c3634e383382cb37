#!/usr/bin/env python3
"""Golden values of antialiased resizing: crates/denoising-diffusion/tests/golden/resize.json.

Pillow does the resampling; the sizes follow torchvision's Resize (int: shorter side, the longer one rounded down)
and CenterCrop (Python's round) as documented. Pillow before 13 always resizes horizontally first; later versions
resize some images vertically first, which moves single values by one level. Needs nothing else:

    pip install pillow==12.0.0 && python tools/parity/golden_resize.py
"""

import json
from pathlib import Path

import PIL
from PIL import Image

OUT = Path(__file__).resolve().parents[2] / "crates/denoising-diffusion/tests/golden/resize.json"
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def pattern(height, width, channels):
    """The same image that the Rust test draws: rough, in every channel different."""
    data = bytearray()
    for y in range(height):
        for x in range(width):
            for c in range(channels):
                data.append((7 * x * x + 13 * x * y + 29 * y + 101 * c + 5 * c * x) % 256)
    return Image.frombytes(MODES[channels], (width, height), bytes(data))


def crop(image, size):
    """Resize(size) then CenterCrop(size)."""
    w, h = image.size
    short, long = min(w, h), max(w, h)
    scaled_long = int(size * long / short)
    w, h = (size, scaled_long) if w <= h else (scaled_long, size)
    image = image.resize((w, h), Image.Resampling.BILINEAR)
    top, left = int(round((h - size) / 2.0)), int(round((w - size) / 2.0))
    return image.crop((left, top, left + size, top + size))


def stretch(image, size):
    height, width = size
    return image.resize((width, height), Image.Resampling.BILINEAR)


CASES = [
    # name, policy, height, width, channels, target
    ("shrink landscape", "crop", 23, 37, 3, 16),
    ("shrink portrait", "crop", 37, 23, 1, 16),
    ("enlarge", "crop", 12, 17, 3, 32),
    ("no scaling, half rounds down", "crop", 28, 41, 3, 28),
    ("no scaling, half rounds up", "crop", 28, 43, 1, 28),
    ("strong shrink", "crop", 301, 211, 1, 8),
    ("square", "crop", 64, 64, 3, 28),
    ("one side only", "stretch", 20, 50, 3, [20, 28]),
    ("shrink and enlarge", "stretch", 41, 13, 3, [20, 28]),
    ("alpha", "crop", 30, 40, 4, 24),
    ("grey alpha, enlarge", "crop", 15, 11, 2, 20),
]


def main():
    cases = []
    for name, policy, height, width, channels, target in CASES:
        image = pattern(height, width, channels)
        image = crop(image, target) if policy == "crop" else stretch(image, target)
        cases.append({
            "name": name,
            "policy": policy,
            "height": height,
            "width": width,
            "channels": channels,
            "target": target if isinstance(target, list) else [target, target],
            "pixels": list(image.tobytes()),
        })
    OUT.parent.mkdir(parents=True, exist_ok=True)
    made_by = f"tools/parity/golden_resize.py, Pillow {PIL.__version__}"
    OUT.write_text(json.dumps({"made_by": made_by, "cases": cases}, separators=(",", ":")) + "\n")
    print(f"{OUT}: {len(cases)} cases, {OUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
