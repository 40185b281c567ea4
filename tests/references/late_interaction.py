"""Makes tiny random models of late interaction (ColBERT), and what their references make of queries and documents.

Each gets a folder in the layout of its published repositories and an `expected.json` with the vectors of tokens that the
Rust tests compare against. Call:

    python late_interaction.py OUTPUT_DIR [MODEL ...]

- stanford: the files of Stanford's ColBERTv2, an encoder and a layer in one file beside `artifact.metadata`. Its reading of
  texts is written down here from the published code (colbert-ai 0.2), over transformers' BERT, and agrees with PyLate's.
- pylate: the files of PyLate over ModernBERT, whose windows are so short that tokens which fill queries up see nothing; two
  layers, of which one has a residual. The reference is PyLate.
- pylate_seen: the same over BERT, with neither markers nor a list of words, and with tokens that fill up and are seen.

Needs what text_embedding.py needs, and pylate.
"""

import json
import string
import sys
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from pylate import models as pylate
from tokenizers import AddedToken
from torch import nn

from make_references import round_digits
from text_embedding import (
    HEADS, LAYERS, MIDDLE, VOCABULARY, WIDTH, WORD_PIECE_SPECIAL, Folder, modern_pairs, randomize, word_piece
)

PACKAGES = ["pylate", "sentence-transformers", "transformers", "tokenizers", "torch"]
QUERY, DOCUMENT, OUTSIDE = 16, 24, 12

QUERIES = ["Where does the cat sleep?", "", "a", "THE TRAIN to the coast; platform nine?", "the quick brown fox " * 12]
DOCUMENTS = [
    "The cat sleeps on the warm windowsill.", "", "a", "?!, (.)", "Good morning! The train leaves: at nine...",
    "今天天气很好, Владимир said; مرحبا! \U0001F600", "The quick brown fox jumps over the lazy dog. " * 12,
]


def max_sim(query: torch.Tensor, document: torch.Tensor) -> float:
    return (query @ document.T).max(1).values.sum().item() if len(document) else 0.0


def expect(folder: Folder, reference: str, encode) -> None:
    """`encode` gives the vectors of a text's tokens, of a query or not."""
    cases = []
    for is_query, texts in [(True, QUERIES), (False, DOCUMENTS)]:
        for text in texts:
            rows = encode(text, is_query)
            assert torch.isfinite(rows).all() and rows.shape[1] == OUTSIDE
            vectors = [[round_digits(x) for x in row] for row in rows.tolist()]
            cases.append({"side": "query" if is_query else "document", "text": text, "vectors": vectors})
    score = max_sim(encode(QUERIES[0], True), encode(DOCUMENTS[0], False))
    head = {"reference": reference, "made_with": {name: version(name) for name in PACKAGES}, "max_sim": score}
    lines = ",\n".join(json.dumps(case, ensure_ascii=True, separators=(",", ":")) for case in cases)
    text = f'{json.dumps(head)[:-1]}, "cases": [\n{lines}\n]}}\n'
    (folder.path / "expected.json").write_text(text, encoding="ascii")
    size = sum(file.stat().st_size for file in folder.path.rglob("*") if file.is_file())
    print(f"{folder.path.name}: {len(cases)} cases, {[len(case['vectors']) for case in cases]}, {size // 1024} KiB")


def by_pylate(folder: Folder):
    model = pylate.ColBERT(str(folder.path), device="cpu", local_files_only=True)

    def encode(text: str, is_query: bool) -> torch.Tensor:
        return model.encode([text], is_query=is_query, show_progress_bar=False, convert_to_tensor=True)[0]

    return encode


def bert_config() -> transformers.BertConfig:
    return transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=MIDDLE, max_position_embeddings=64,
    )


def stanford(root: Path) -> None:
    folder = Folder(root, "stanford")
    tokenizer = word_piece()
    # As in the vocabulary of BERT, where they stand for nothing.
    markers = ["[unused0]", "[unused1]"]
    tokenizer.add_tokens([AddedToken(marker, normalized=False) for marker in markers])
    config = bert_config()
    config.vocab_size, config.architectures = tokenizer.get_vocab_size(), ["HF_ColBERT"]
    folder.json("config.json", config.to_dict())
    encoder = randomize(transformers.BertModel(config), 51)
    layer = randomize(nn.Linear(WIDTH, OUTSIDE, bias=False), 52)
    tensors = {f"bert.{name}": tensor for name, tensor in encoder.state_dict().items()}
    folder.weights({**tensors, "linear.weight": layer.weight, "bert.embeddings.position_ids": torch.arange(64)[None]})
    folder.tokenizer(tokenizer, WORD_PIECE_SPECIAL, 512)
    # Those of colbert-ir/colbertv2.0, but for the lengths and paths.
    folder.json("artifact.metadata", {
        "query_token_id": "[unused0]", "doc_token_id": "[unused1]", "query_token": "[Q]", "doc_token": "[D]",
        "ncells": None, "centroid_score_threshold": None, "ndocs": None, "index_path": None, "nbits": 1,
        "kmeans_niters": 20, "similarity": "cosine", "bsize": 8, "accumsteps": 1, "lr": 1e-5, "maxsteps": 400000,
        "save_every": None, "resume": False, "warmup": 20000, "warmup_bert": None, "relu": False, "nway": 64,
        "use_ib_negatives": True, "reranker": False, "distillation_alpha": 1.0, "ignore_scores": False,
        "query_maxlen": QUERY, "attend_to_mask_tokens": False, "interaction": "colbert", "dim": OUTSIDE,
        "doc_maxlen": DOCUMENT, "mask_punctuation": True, "checkpoint": "/somewhere", "triples": "/somewhere",
        "collection": "/somewhere", "queries": "/somewhere", "index_name": None, "overwrite": False,
        "root": "/somewhere", "experiment": "default", "index_root": None, "name": "2021-11/30", "rank": 0,
        "nranks": 4, "amp": True, "gpus": 8,
    })
    read = transformers.AutoTokenizer.from_pretrained(folder.path)
    query_marker, document_marker = read.convert_tokens_to_ids(markers)
    skipped = {read.encode(symbol, add_special_tokens=False)[0] for symbol in string.punctuation}

    def marked(rows: torch.Tensor, marker: int) -> torch.Tensor:
        return torch.cat([rows[:, :1], torch.tensor([[marker]]), rows[:, 1:]], 1)

    @torch.no_grad()
    def encode(text: str, is_query: bool) -> torch.Tensor:
        """As QueryTokenizer, DocTokenizer and ColBERT of colbert-ai do it."""
        if is_query:
            given = read([text], padding="max_length", truncation=True, return_tensors="pt", max_length=QUERY - 1)
            ids = marked(given["input_ids"], query_marker)
            ids[ids == read.pad_token_id] = read.mask_token_id
        else:
            given = read([text], padding="longest", truncation="longest_first", return_tensors="pt", max_length=DOCUMENT - 1)
            ids = marked(given["input_ids"], document_marker)
        rows = layer(encoder(ids, attention_mask=marked(given["attention_mask"], 1))[0])[0]
        kept = [is_query or token not in skipped for token in ids[0].tolist()]
        return nn.functional.normalize(rows[torch.tensor(kept)], p=2, dim=1)

    other = by_pylate(folder)
    for is_query, texts in [(True, QUERIES), (False, DOCUMENTS)]:
        for text in texts:
            apart = (encode(text, is_query) - other(text, is_query)).abs()
            assert apart.numel() == 0 or apart.max() < 1e-5, (text, is_query)
    expect(folder, "colbert-ai's reading of texts over transformers, and pylate", encode)


def modules(folder: Folder, layers: list[str]) -> None:
    kinds = [("", "sentence_transformers.models.Transformer")]
    kinds += [(layer, "pylate.models.Dense.Dense") for layer in layers]
    folder.json("modules.json", [
        {"idx": index, "name": str(index), "path": path, "type": kind} for index, (path, kind) in enumerate(kinds)
    ])


def layer(folder: Folder, name: str, inside: int, outside: int, seed: int, residual: bool, activation: str) -> None:
    dense = folder.dense(name, outside, seed, f"torch.nn.modules.{activation}", inside, bias=False)
    written = json.loads((folder.path / name / "config.json").read_text())
    folder.json(f"{name}/config.json", {**written, "use_residual": residual})
    if residual and inside != outside:
        from safetensors.torch import save_file
        other = randomize(nn.Linear(inside, outside, bias=False), seed + 10)
        tensors = {"linear.weight": dense.weight.detach(), "residual.weight": other.weight.detach()}
        save_file(tensors, folder.path / name / "model.safetensors")


def settings(folder: Folder, **more) -> None:
    folder.json("config_sentence_transformers.json", {
        "__version__": {"sentence_transformers": "4.0.2", "transformers": "4.48.2", "pytorch": "2.6.0"}, "prompts": {},
        "default_prompt_name": None, "similarity_fn_name": "MaxSim", "query_length": QUERY, "document_length": DOCUMENT,
        **more,
    })


def pylate_modern(root: Path) -> None:
    folder = Folder(root, "pylate")
    tokenizer = modern_pairs()
    tokenizer.add_tokens([AddedToken(marker, normalized=True) for marker in ["[Q] ", "[D] "]])
    config = transformers.ModernBertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=MIDDLE, max_position_embeddings=64, local_attention=6, global_attn_every_n_layers=3,
        pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3,
    )
    randomize(transformers.ModernBertModel(config), 53).save_pretrained(folder.path)
    folder.tokenizer(tokenizer, WORD_PIECE_SPECIAL, 64)
    folder.json("sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": False})
    modules(folder, ["1_Dense", "2_Dense", "3_Dense"])
    layer(folder, "1_Dense", WIDTH, 20, 54, True, "activation.GELU")
    layer(folder, "2_Dense", 20, 20, 55, True, "linear.Identity")
    layer(folder, "3_Dense", 20, OUTSIDE, 56, False, "linear.Identity")
    settings(
        folder, query_prefix="[Q] ", document_prefix="[D] ", attend_to_expansion_tokens=False, do_query_expansion=True,
        skiplist_words=[*string.punctuation, "no such word"],
    )
    expect(folder, "pylate", by_pylate(folder))


def pylate_seen(root: Path) -> None:
    folder = Folder(root, "pylate_seen")
    config = bert_config()
    randomize(transformers.BertModel(config, add_pooling_layer=False), 57).save_pretrained(folder.path)
    folder.tokenizer(word_piece(), WORD_PIECE_SPECIAL, 512)
    folder.json("sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": True})
    modules(folder, ["1_Dense"])
    layer(folder, "1_Dense", WIDTH, OUTSIDE, 58, False, "linear.Identity")
    settings(folder, query_prefix="", document_prefix="", attend_to_expansion_tokens=True, skiplist_words=[])
    expect(folder, "pylate", by_pylate(folder))


MODELS = {"stanford": stanford, "pylate": pylate_modern, "pylate_seen": pylate_seen}


def main() -> None:
    root, wanted = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    for name, make in MODELS.items():
        if not wanted or name in wanted:
            make(root)


if __name__ == "__main__":
    main()
