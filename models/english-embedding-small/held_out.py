"""Writes `held_out.json`: texts that training did not see, and the nearest of them to each by the teacher.

They are from the end of the corpus, which `train.py` keeps for its reports, less those that share a definition with
a text before them, that stand within a text that is trained on, or that have one of at least `FEWEST_WORDS` words
within. `examples/measure.rs` reads the file.
"""

import argparse
import json
from pathlib import Path

import numpy as np

FEWEST_WORDS = 5


def definition(text: str) -> str:
    """WordNet's definitions stand in the corpus with the word that they are of, and without it."""
    return text.split(": ", 1)[-1]


def apart(corpus: list[str], chosen: list[int], trained: int) -> list[int]:
    """Those of the chosen that neither stand within a text that is trained on nor have one within."""
    everything = "\n".join(corpus[:trained])
    long = [text for text in corpus[:trained] if len(text.split()) >= FEWEST_WORDS]
    alone = [row for row in chosen if corpus[row] not in everything]
    texts = "\n".join(corpus[row] for row in alone)
    within = [text for text in long if text in texts]
    return [row for row in alone if not any(text in corpus[row] for text in within)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--vectors", type=Path, required=True, help="what `teach.py` wrote")
    parser.add_argument("--held-out", type=int, default=1500, help="as for `train.py`")
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("held_out.json"))
    args = parser.parse_args()
    corpus = args.corpus.read_text(encoding="utf-8").splitlines()
    seen, chosen = {definition(text) for text in corpus[: -args.held_out]}, []
    for row in range(len(corpus) - args.held_out, len(corpus)):
        if len(corpus[row].split()) >= FEWEST_WORDS and definition(corpus[row]) not in seen:
            seen.add(definition(corpus[row]))
            chosen.append(row)
    chosen = apart(corpus, chosen, len(corpus) - args.held_out)[: args.texts]
    vectors = np.load(args.vectors, mmap_mode="r")[chosen].astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1.0)
    pairs = [{"text": corpus[row], "nearest": int(near)} for row, near in zip(chosen, cosines.argmax(axis=1))]
    args.output.write_text(json.dumps(pairs, indent=1) + "\n", encoding="utf-8")
    print(f"{len(pairs)} texts")


if __name__ == "__main__":
    main()
