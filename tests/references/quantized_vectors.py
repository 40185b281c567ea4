"""Writes the 8-bit numbers and bits that sentence-transformers makes of some vectors. Call:

    python quantized_vectors.py > ../../actors/tests/golden/quantized_vectors.json

Needs the PyPI package sentence-transformers.
"""

import json
from importlib.metadata import version

import numpy as np
from sentence_transformers.util.quantization import quantize_embeddings

random = np.random.default_rng(7)
calibration = random.normal(size=(40, 19)).astype(np.float32)
# A dimension that never changes, and vectors beyond the ranges.
calibration[:, 3] = 0.25
vectors = np.concatenate([calibration[:4], 3 * random.normal(size=(5, 19)).astype(np.float32)])
vectors[4, :6] = [0.0, -0.0, 0.25, 0.25, 1e-30, -1e-30]
ranges = np.vstack((calibration.min(axis=0), calibration.max(axis=0)))

out = {
    "made_with": {"sentence-transformers": version("sentence-transformers")},
    "calibration": calibration.tolist(),
    "vectors": vectors.tolist(),
}
for precision in ["int8", "uint8", "binary", "ubinary"]:
    given = {"calibration_embeddings": calibration} if precision.endswith("int8") else {}
    out[precision] = quantize_embeddings(vectors, precision, **given).tolist()
assert (quantize_embeddings(vectors, "int8", ranges=ranges) == np.array(out["int8"])).all()
print(json.dumps(out, separators=(",", ":")).replace('],"', '],\n"').replace("]],", "]],\n"))
