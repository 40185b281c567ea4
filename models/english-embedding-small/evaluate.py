"""Measures how well the student agrees with its teacher.

On a file of held-out sentences: Spearman correlation of the two models' cosines
over random pairs and over near pairs (each sentence with its ten nearest by the
teacher), and how often the nearest neighbours agree. On `paraphrases.json`: how
often a sentence is nearer to its paraphrase than to an unrelated sentence.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer


def load(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True).float()


def cosines(model: SentenceTransformer, texts: list[str]) -> np.ndarray:
    """All cosines between the texts, with the diagonal set to -1."""
    vectors = model.encode(texts, show_progress_bar=False, normalize_embeddings=True)
    matrix = vectors @ vectors.T
    np.fill_diagonal(matrix, -1.0)
    return matrix


def held_out_figures(student: np.ndarray, teacher: np.ndarray, seed: int) -> dict[str, float]:
    count = len(teacher)
    rows, columns = np.random.default_rng(seed).integers(0, count, (2, 100_000))
    rows, columns = rows[rows != columns], columns[rows != columns]
    order, ours = np.argsort(-teacher, axis=1), np.argsort(-student, axis=1)
    near_rows, near_columns = np.repeat(np.arange(count), 10), order[:, :10].ravel()
    common = [len(set(a) & set(b)) / 5 for a, b in zip(order[:, :5], ours[:, :5])]
    return {
        "Spearman, random pairs": spearmanr(student[rows, columns], teacher[rows, columns])[0],
        "Spearman, near pairs": spearmanr(student[near_rows, near_columns], teacher[near_rows, near_columns])[0],
        "nearest neighbour the same": float(np.mean(order[:, 0] == ours[:, 0])),
        "teacher's nearest in student's first 5": float(np.mean([a in b for a, b in zip(order[:, 0], ours[:, :5])])),
        "common part of the first 5": float(np.mean(common)),
    }


def triples(model: SentenceTransformer, items: list[list[str]]) -> tuple[float, float, list[list[str]]]:
    """The part of triples in the right order, the mean margin, and the wrong ones."""
    vectors = model.encode(sum(items, []), show_progress_bar=False, normalize_embeddings=True)
    first, second, other = vectors.reshape(len(items), 3, -1).transpose(1, 0, 2)
    margin = (first * second).sum(1) - (first * other).sum(1)
    return float((margin > 0).mean()), float(margin.mean()), [t for t, m in zip(items, margin) if m <= 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--student", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--sentences", type=Path, required=True, help="held-out text, one sentence a line")
    parser.add_argument("--paraphrases", type=Path, default=Path(__file__).with_name("paraphrases.json"))
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    student, teacher = load(args.student), load(args.teacher)
    sentences = list(dict.fromkeys(args.sentences.read_text(encoding="utf-8").splitlines()))
    figures = held_out_figures(cosines(student, sentences), cosines(teacher, sentences), args.seed)
    print(f"{len(sentences)} held-out sentences")
    for name, value in figures.items():
        print(f"  {name}: {value:.3f}")
    items = json.loads(args.paraphrases.read_text(encoding="utf-8"))
    for name, model in (("student", student), ("teacher", teacher)):
        accuracy, margin, wrong = triples(model, items)
        print(f"{len(items)} triples, {name}: {accuracy:.3f} right, mean margin {margin:.3f}")
        for triple in wrong:
            print("  wrong:", triple)


if __name__ == "__main__":
    main()
