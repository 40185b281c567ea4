"""Writes tests/fixtures/images: small encoded images of many kinds, and the pixels that the reference processors of
transformers see of each: `convert_to_rgb(ImageOps.exif_transpose(image))`, which lays what is transparent on white. One
case is different on purpose: of 16-bit grey, Pillow's conversion keeps the low end and makes all else white; here the
high byte is expected, as Pillow itself does for 16-bit colour.

    python tests/references/images.py            all of it
    python tests/references/images.py --pixels   the pixels alone, of the images that are there

Needs the PyPI packages numpy, pillow, torch and transformers 5.23.
"""

import json
import pathlib
import struct
import sys
import zlib

import numpy
from PIL import Image, ImageOps
from transformers.image_transforms import convert_to_rgb

FOLDER = pathlib.Path(__file__).parent.parent / "fixtures" / "images"
WIDTH, HEIGHT = 37, 23
# Written to see that they are refused.
REFUSED = {"icon.ico", "picture.avif"}


def scene(width=WIDTH, height=HEIGHT, seed=1):
    """Something like a photograph: soft colours, a few edges, a little noise."""
    random = numpy.random.default_rng(seed)
    y, x = numpy.mgrid[0:height, 0:width]
    channels = []
    for _ in range(3):
        plane = 128 + sum(
            random.uniform(10, 40) * numpy.cos(random.uniform(0, 0.25) * x + random.uniform(0, 0.25) * y + random.uniform(0, 6))
            for _ in range(4)
        )
        channels.append(plane)
    image = numpy.stack(channels, -1)
    image[height // 3 : height // 2, width // 4 : width // 2] += (70, -60, 40)
    image += random.normal(0, 2, image.shape)
    return numpy.clip(image, 0, 255).astype(numpy.uint8)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples, bits, colour, interlace=False, extra=b""):
    """A PNG by hand, for what Pillow cannot write: `samples` is (height, width, channels)."""
    samples = samples.astype(">u2" if bits == 16 else "u1")
    height, width = samples.shape[:2]
    passes = [(0, 0, 1, 1)]
    if interlace:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = b"".join(
        b"\0" + row.tobytes() for x, y, dx, dy in passes for row in samples[y::dy, x::dx] if row.size
    )
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlace))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


def save(name, image, **options):
    image.save(FOLDER / name, **options)


def pngs(rgb, alpha):
    image = Image.fromarray(rgb)
    save("rgb.png", image)
    save("rgba.png", Image.fromarray(numpy.dstack([rgb, alpha])))
    save("grey.png", image.convert("L"))
    save("grey_alpha.png", Image.fromarray(numpy.dstack([rgb, alpha])).convert("LA"))
    save("one_bit.png", image.convert("1"))
    for bits in (1, 2, 4, 8):
        save(f"palette_{bits}.png", image.quantize(2**bits), bits=bits)
    save("palette_transparent.png", image.quantize(16), transparency=bytes(range(0, 256, 16)))
    save("grey_transparent.png", image.convert("L"), transparency=128)
    save("rgb_transparent.png", image, transparency=tuple(int(v) for v in rgb[3, 4]))
    save("oriented.png", image, exif=orientation(6))
    save("animated.png", image, save_all=True, append_images=[ImageOps.invert(image)], duration=100)
    save("animated_default.png", image, save_all=True, default_image=True, append_images=[ImageOps.invert(image)] * 2)
    deep = rgb.astype(numpy.uint16) * 257 ^ numpy.random.default_rng(2).integers(0, 256, rgb.shape).astype(numpy.uint16)
    (FOLDER / "grey_16.png").write_bytes(png(deep[..., :1], 16, 0))
    (FOLDER / "grey_alpha_16.png").write_bytes(png(deep[..., :2], 16, 4))
    (FOLDER / "rgb_16.png").write_bytes(png(deep, 16, 2))
    (FOLDER / "rgba_16.png").write_bytes(png(numpy.dstack([deep, deep[..., 0]]), 16, 6))
    (FOLDER / "interlaced.png").write_bytes(png(rgb, 8, 2, interlace=True))


def jpegs(rgb):
    image = Image.fromarray(rgb)
    for name, sampling in (("444", 0), ("422", 1), ("420", 2)):
        save(f"rgb_{name}.jpg", image, quality=90, subsampling=sampling)
        save(f"progressive_{name}.jpg", image, quality=75, subsampling=sampling, progressive=True)
    save("keeps_rgb.jpg", image, quality=90, keep_rgb=True)
    save("grey.jpg", image.convert("L"), quality=90)
    save("cmyk.jpg", image.convert("CMYK"), quality=90)
    save("restarts.jpg", image, quality=90, restart_marker_blocks=2)
    for value in range(1, 9):
        save(f"oriented_{value}.jpg", image, quality=95, subsampling=0, exif=orientation(value))
    whole = (FOLDER / "rgb_420.jpg").read_bytes()
    (FOLDER / "trailing.jpg").write_bytes(whole + b"\0" * 20)
    large = Image.fromarray(scene(181, 97, seed=5))
    save("larger_420.jpg", large, quality=85)
    save("larger_progressive.jpg", large, quality=30, progressive=True)
    save("strong_420.jpg", large, quality=100)
    for width, height in ((1, 1), (2, 2), (3, 5), (5, 3), (17, 1), (1, 17), (16, 16)):
        tiny = Image.fromarray(scene(width, height, seed=7))
        save(f"tiny_{width}x{height}.jpg", tiny, quality=90, subsampling=2)


def webps(rgb, alpha):
    image = Image.fromarray(rgb)
    transparent = Image.fromarray(numpy.dstack([rgb, alpha]))
    save("lossy.webp", image, quality=80)
    save("lossless.webp", image, lossless=True)
    save("lossy_alpha.webp", transparent, quality=80, exact=True)
    save("lossless_alpha.webp", transparent, lossless=True, exact=True)
    save("oriented.webp", image, lossless=True, exif=orientation(8))
    save("animated.webp", image, lossless=True, save_all=True, append_images=[ImageOps.invert(image)], duration=100)


def gifs(rgb):
    image = Image.fromarray(rgb)
    palette = image.quantize(32)
    save("plain.gif", palette, interlace=0)
    save("interlaced.gif", palette, interlace=1)
    save("transparent.gif", palette, transparency=3)
    save("animated.gif", palette, save_all=True, append_images=[ImageOps.invert(image).quantize(32)], duration=100)


def bmps(rgb, alpha):
    image = Image.fromarray(rgb)
    save("rgb.bmp", image)
    save("palette.bmp", image.quantize(200))
    save("one_bit.bmp", image.convert("1"))
    save("grey.bmp", image.convert("L"))
    save("rgba.bmp", Image.fromarray(numpy.dstack([rgb, alpha])))


def others(rgb):
    image = Image.fromarray(rgb)
    save("icon.ico", image)
    save("picture.avif", image)


def reference(path):
    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):
            image = Image.fromarray((numpy.asarray(image) >> 8).astype(numpy.uint8))
        return Image.fromarray(convert_to_rgb(image, return_numpy=True))


def images():
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    rgb = scene()
    alpha = numpy.random.default_rng(3).integers(0, 256, rgb.shape[:2]).astype(numpy.uint8)
    pngs(rgb, alpha)
    jpegs(rgb)
    webps(rgb, alpha)
    gifs(rgb)
    bmps(rgb, alpha)
    others(rgb)


def main():
    if "--pixels" not in sys.argv:
        images()
    sizes = {}
    for path in sorted(FOLDER.iterdir()):
        if path.name in REFUSED or path.suffix in {".rgb", ".json"}:
            continue
        pixels = reference(path)
        sizes[path.name] = pixels.size
        (FOLDER / f"{path.name}.rgb").write_bytes(pixels.tobytes())
    (FOLDER / "expected.json").write_text(json.dumps(sizes, indent=1) + "\n")


if __name__ == "__main__":
    main()
