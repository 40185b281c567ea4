"""Embeds the training text with the teacher and stores the result for `train.py`.

Writes one array of float16: row i belongs to line i of the corpus. Texts are
taken from the shortest to the longest, so the last blocks take the longest
time.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer


def embed_sorted(model: SentenceTransformer, texts: list[str], batch: int) -> np.ndarray:
    """Embeds texts of like length together; the padding saved is most of the time."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    vectors = np.zeros((len(texts), model.get_embedding_dimension()), dtype=np.float16)
    began, block = time.monotonic(), 100 * batch
    for start in range(0, len(order), block):
        chosen = order[start : start + block]
        vectors[chosen] = model.encode([texts[i] for i in chosen], batch_size=batch, show_progress_bar=False)
        print(f"{start + len(chosen)} of {len(texts)}, {time.monotonic() - began:.0f} s", flush=True)
    return vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help=".npy file")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = SentenceTransformer(str(args.teacher), device="cpu", local_files_only=True)
    texts = args.corpus.read_text(encoding="utf-8").splitlines()
    np.save(args.output, embed_sorted(model, texts, batch=64))


if __name__ == "__main__":
    main()
