"""Cuts the photographs that tests look at out of those that come with scikit-image.

All of them are in the public domain or CC0 (see README.md beside them). Call with an unpacked scikit-image wheel:

    python photographs.py SKIMAGE_DATA_DIR

Needs the PyPI package pillow.
"""

import sys
from pathlib import Path

from PIL import Image

OUT = Path(__file__).parent.parent / "fixtures" / "photographs"

# Source, part of it (left, top, right, bottom), size afterwards, or None to leave it. All sides are odd.
CUTS = {
    "cat": ("chelsea.png", (114, 64, 305, 195), None),
    "coffee": ("coffee.png", (0, 0, 600, 400), (187, 123)),
    "face": ("astronaut.png", (160, 10, 267, 197), None),
    "eye": ("retina.jpg", (0, 0, 1411, 1411), (61, 61)),
    "sky": ("hubble_deep_field.jpg", (200, 300, 491, 367), None),
    "stamp": ("chelsea.png", (130, 80, 330, 270), (31, 29)),
}


def main() -> None:
    data = Path(sys.argv[1])
    OUT.mkdir(parents=True, exist_ok=True)
    for name, (source, box, size) in CUTS.items():
        image = Image.open(data / source).convert("RGB").crop(box)
        if size is not None:
            image = image.resize(size, Image.Resampling.LANCZOS)
        path = OUT / f"{name}.png"
        image.save(path, optimize=True)
        print(f"{path.name}: {image.width} x {image.height}, {path.stat().st_size} bytes")
    # JPEGs, one of them as it came, and the pixels that Pillow sees of each, to tell what another decoder changes.
    (OUT / "rocket.jpg").write_bytes((data / "rocket.jpg").read_bytes())
    exact(OUT / "rocket.jpg", "rocket.webp")
    for name in ["cat", "coffee", "face"]:
        Image.open(OUT / f"{name}.png").convert("RGB").save(OUT / f"{name}.jpg", quality=85)
        exact(OUT / f"{name}.jpg", f"{name}_jpg.webp")


def exact(path: Path, name: str) -> None:
    Image.open(path).convert("RGB").save(OUT / name, lossless=True, quality=100, method=6)


if __name__ == "__main__":
    main()
