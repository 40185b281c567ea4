"""Writes random blocks of the GGML types that candle lacks, with the numbers that the `gguf` package makes of them, to
tests/fixtures/ggml/blocks.safetensors. Every scale and every four bits occur. Call:

    python ggml_blocks.py

Needs the PyPI packages numpy, safetensors and gguf.
"""

from pathlib import Path

import gguf
import numpy
from safetensors.numpy import save_file

FILE = Path(__file__).resolve().parent.parent / "fixtures" / "ggml" / "blocks.safetensors"


def blocks(kind, count, random):
    """Rows of one block each. 16-bit scales are finite."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    data = random.integers(0, 256, (count, size), dtype=numpy.uint8)
    if kind == gguf.GGMLQuantizationType.MXFP4:
        # The largest powers of two are beyond what 32 bits hold.
        data[:, 0] = numpy.arange(count) % 252
    else:
        scales = (random.standard_normal(count) * 10.0 ** random.integers(-7, 4, count)).astype(numpy.float16)
        data[:, :2] = scales.view(numpy.uint8).reshape(count, 2)
    return data


def main():
    random = numpy.random.default_rng(7)
    tensors = {}
    for name, count in [("IQ4_NL", 128), ("IQ4_XS", 32), ("MXFP4", 252)]:
        kind = gguf.GGMLQuantizationType[name]
        data = blocks(kind, count, random)
        values = gguf.quants.dequantize(data, kind)
        assert numpy.isfinite(values).all(), name
        tensors[f"{name}.blocks"] = data
        tensors[f"{name}.values"] = values.astype(numpy.float32)
        print(name, data.shape, values.shape)
    FILE.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, FILE)


if __name__ == "__main__":
    main()
