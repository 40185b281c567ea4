"""Distils a small English sentence-embedding model from a larger one.

Input: the teacher's folder, the corpus of `corpus.py` and the teacher's vectors
of it made by `teach.py`. Output: a complete sentence-transformers folder (BERT,
mean pooling, normalised; weights as float16). The steps:

1. keep the most useful WordPiece entries of the teacher's vocabulary;
2. project the teacher's vectors onto their first principal components;
3. start every word vector at the teacher's projected vector of that word piece,
   and the layers near identity, so that the untrained model is already a
   reasonable average of word vectors;
4. train it to match the projected vectors and the teacher's similarities
   within each batch.
"""

import argparse
import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch.nn.functional import normalize
from transformers import AutoModel, BertConfig, BertModel

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MAX_TOKENS = 256


@dataclass
class Data:
    """Tokenized texts and the teacher's vectors of them, row by row."""

    ids: list[list[int]]
    full: torch.Tensor  # the teacher's vectors, unit length
    target: torch.Tensor  # the same on the principal components, unit length


def choose_vocabulary(teacher: Tokenizer, texts: list[str], size: int) -> list[str]:
    """Special tokens, all printable ASCII, then half by general and half by corpus frequency.

    The teacher's ids run from frequent to rare in general English, which the corpus is not.
    """
    counts: Counter[str] = Counter()
    for start in range(0, len(texts), 10_000):
        for encoding in teacher.encode_batch(texts[start : start + 10_000], add_special_tokens=False):
            counts.update(encoding.tokens)
    ids = {t: i for t, i in teacher.get_vocab().items() if t.isascii() and t not in SPECIAL and "[unused" not in t}
    characters = [t for t in ids if len(t.removeprefix("##")) == 1]
    general = sorted((t for t in ids if counts[t] >= 5), key=ids.__getitem__)
    frequent = sorted(ids, key=lambda t: (-counts[t], ids[t]))
    room = size - len(SPECIAL) - len(characters)
    kept = dict.fromkeys(characters)
    kept.update(dict.fromkeys([t for t in general if t not in kept][: room // 2]))
    kept.update(dict.fromkeys([t for t in frequent if t not in kept][: size - len(SPECIAL) - len(kept)]))
    return SPECIAL + sorted(kept, key=ids.__getitem__)


def prune_tokenizer(source: Path, vocabulary: list[str]) -> str:
    """The teacher's tokenizer.json with a smaller vocabulary and no baked-in padding."""
    document = json.loads(source.read_text(encoding="utf-8"))
    ids = {token: i for i, token in enumerate(vocabulary)}
    document["model"]["vocab"] = ids
    document["padding"] = document["truncation"] = None
    for token in document["added_tokens"]:
        token["id"] = ids[token["content"]]
    for name, token in document["post_processor"].get("special_tokens", {}).items():
        token["ids"] = [ids[name]]
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


@torch.no_grad()
def piece_vectors(teacher_dir: Path, teacher: Tokenizer, vocabulary: list[str]) -> torch.Tensor:
    """The teacher's sentence vector of each word piece alone."""
    model = AutoModel.from_pretrained(teacher_dir, local_files_only=True).eval()
    cls, sep = teacher.token_to_id("[CLS]"), teacher.token_to_id("[SEP]")
    rows = torch.tensor([[cls, teacher.token_to_id(t), sep] for t in vocabulary])
    return torch.cat([normalize(model(part).last_hidden_state.mean(1)) for part in rows.split(256)])


def build_student(args: argparse.Namespace, words: torch.Tensor) -> BertModel:
    """A BERT whose layers change little at first and whose word vectors are given."""
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 32,
        intermediate_size=args.intermediate,
        max_position_embeddings=MAX_TOKENS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        architectures=["BertModel"],
    )
    model = BertModel(config, add_pooling_layer=False)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.copy_(words)
        model.embeddings.position_embeddings.weight.mul_(0.1)
        model.embeddings.token_type_embeddings.weight.zero_()
        for layer in model.encoder.layer:
            layer.attention.output.dense.weight.mul_(0.5)
            layer.output.dense.weight.mul_(0.5)
    return model


def embed(model: BertModel, rows: list[list[int]], drop: float = 0.0) -> torch.Tensor:
    """Mean-pooled unit vectors; `drop` hides that part of the tokens from the model."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    if drop and longest > 6:
        mask = mask * (torch.rand(mask.shape) >= drop)
        mask[:, 0] = 1
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask.unsqueeze(-1).float()
    return normalize((hidden * weights).sum(1) / weights.sum(1))


def batches(lengths: list[int], size: int, rng: random.Random) -> Iterator[list[int]]:
    """Shuffled batches whose texts are of like length; long texts come in smaller batches."""
    order = list(range(len(lengths)))
    rng.shuffle(order)
    result = []
    for start in range(0, len(order), 40 * size):
        pool = sorted(order[start : start + 40 * size], key=lengths.__getitem__)
        while pool:
            count = min(size, max(16, 64 * size // lengths[pool[-1]]))
            result.append(pool[-count:])
            del pool[-count:]
    rng.shuffle(result)
    return iter(result)


def loss(student: torch.Tensor, data: Data, chosen: list[int], weight: float) -> torch.Tensor:
    """Distance to the teacher's vectors, plus distance to its similarities within the batch."""
    direct = 1 - (student * data.target[chosen]).sum(1).mean()
    full = data.full[chosen]
    pairs = (student @ student.T - full @ full.T).square().mean()
    return direct + weight * pairs


@torch.no_grad()
def report(model: BertModel, data: Data, rows: range) -> str:
    """Agreement on rows that training has not seen."""
    model.eval()
    parts = [list(rows)[i : i + 100] for i in range(0, len(rows), 100)]
    student = torch.cat([embed(model, [data.ids[i] for i in part]) for part in parts])
    cosine = (student * data.target[rows]).sum(1).mean()
    upper = torch.triu_indices(len(rows), len(rows), 1)
    ours = (student @ student.T)[upper[0], upper[1]]
    theirs = (data.full[rows] @ data.full[rows].T)[upper[0], upper[1]]
    correlation = torch.corrcoef(torch.stack([ours, theirs]))[0, 1]
    model.train()
    return f"held-out cosine {cosine:.4f}, correlation of similarities {correlation:.4f}"


def train(model: BertModel, data: Data, tokenizer_json: str, args: argparse.Namespace) -> None:
    """Trains for whole epochs and saves the model after each."""
    held_out = range(len(data.ids) - args.held_out, len(data.ids))
    lengths = [len(row) for row in data.ids[: held_out.start]]
    rng, began = random.Random(args.seed), time.monotonic()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.98))
    total = args.epochs * sum(1 for _ in batches(lengths, args.batch, random.Random(0)))
    step, running = 0, 0.0
    print(report(model, data, held_out), flush=True)
    for epoch in range(args.epochs):
        for chosen in batches(lengths, args.batch, rng):
            progress = min(step / total, 1.0)
            rate = args.rate * min(1.0, (step + 1) / 200) * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)
            for group in optimizer.param_groups:
                group["lr"] = rate
            student = embed(model, [data.ids[i] for i in chosen], args.drop)
            value = loss(student, data, chosen, args.pair_weight)
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            running += (value.item() - running) / min(step, 100)
            if step % 100 == 0:
                print(f"step {step} of {total}, loss {running:.4f}, {time.monotonic() - began:.0f} s", flush=True)
        print(f"epoch {epoch + 1}: {report(model, data, held_out)}", flush=True)
        save(model, tokenizer_json, args.output)


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def save(model: BertModel, tokenizer_json: str, folder: Path) -> None:
    """Writes the folder as sentence-transformers and the Rust loader expect it."""
    config = {
        key: getattr(model.config, key)
        for key in [
            "architectures", "model_type", "vocab_size", "hidden_size", "num_hidden_layers",
            "num_attention_heads", "intermediate_size", "hidden_act", "max_position_embeddings",
            "type_vocab_size", "layer_norm_eps", "initializer_range", "hidden_dropout_prob",
            "attention_probs_dropout_prob", "pad_token_id",
        ]
    }
    write_json(folder / "config.json", config | {"position_embedding_type": "absolute", "torch_dtype": "float16"})
    names = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}
    write_json(folder / "special_tokens_map.json", names)
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "strip_accents": None,
         "tokenize_chinese_chars": True, "model_max_length": MAX_TOKENS} | names,
    )
    (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": MAX_TOKENS, "do_lower_case": False})
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    write_json(
        folder / "modules.json",
        [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
         for i, (path, kind) in enumerate(modules)],
    )
    write_json(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": model.config.hidden_size, "pooling_mode_cls_token": False,
         "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False,
         "pooling_mode_mean_sqrt_len_tokens": False},
    )
    weights = {k: v.to(torch.float16).contiguous() for k, v in model.state_dict().items() if v.is_floating_point()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, help="the teacher's folder")
    parser.add_argument("--corpus", type=Path, required=True, help="output of corpus.py")
    parser.add_argument("--vectors", type=Path, required=True, help="output of teach.py")
    parser.add_argument("--output", type=Path, required=True, help="the student's folder")
    parser.add_argument("--vocabulary", type=int, default=6600)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--intermediate", type=int, default=384)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--pair-weight", type=float, default=20.0)
    parser.add_argument("--drop", type=float, default=0.03)
    parser.add_argument("--held-out", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    texts = args.corpus.read_text(encoding="utf-8").splitlines()
    full = normalize(torch.from_numpy(np.load(args.vectors).astype(np.float32)))
    components = torch.linalg.svd(full[:20_000], full_matrices=False).Vh[: args.hidden].T
    teacher = Tokenizer.from_file(str(args.teacher / "tokenizer.json"))
    teacher.no_padding()
    teacher.no_truncation()
    vocabulary = choose_vocabulary(teacher, texts, args.vocabulary)
    tokenizer_json = prune_tokenizer(args.teacher / "tokenizer.json", vocabulary)
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.enable_truncation(MAX_TOKENS)
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    data = Data(ids, full, normalize(full @ components))
    print(f"{len(texts)} texts, {sum(map(len, ids))} tokens, {len(vocabulary)} word pieces", flush=True)

    # Standard BERT scale: the first layer norm brings every vector to one length anyway.
    words = piece_vectors(args.teacher, teacher, vocabulary) @ components
    words = 0.05 * words / words.std()
    words[0] = 0.0
    model = build_student(args, words)
    train(model, data, tokenizer_json, args)


if __name__ == "__main__":
    main()
