"""Makes tiny random models of every reranking family, and the scores that the reference implementation gives pairs.

Each family gets a folder in the layout of its published repositories, and an `expected.json` with logits and scores that
the Rust tests compare against. Call:

    python reranking.py OUTPUT_DIR [FAMILY ...]

Where the reference comes from:
- bert, roberta, xlm_roberta, modernbert: transformers' own classifiers, run by sentence-transformers' CrossEncoder.
- qwen3: transformers' own Qwen3, asked for yes or no as the model's published description says; written down here.

Weights are seeded; tokenizers are those of text_embedding.py.

Needs the PyPI packages torch, transformers, tokenizers, safetensors and sentence-transformers.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from sentence_transformers import CrossEncoder
from tokenizers import processors
from torch import nn

from make_references import ordinary_texts, round_digits
from text_embedding import (
    HEADS, LAYERS, LONGEST, MIDDLE, PACKAGES, QWEN_SPECIAL, ROBERTA_SPECIAL, VOCABULARY, WIDTH, WORD_PIECE_SPECIAL,
    Folder, modern_pairs, qwen_pairs, randomize, roberta_pairs, unigram, word_piece,
)

FOX = "The quick brown fox jumps over the lazy dog. "
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "intermediate_size": MIDDLE, "num_labels": 1,
}


def requests(long: int = 20) -> list[dict]:
    """Queries and documents of no token to more than any model here looks at, each and together."""
    documents = [
        "Cats sleep for 15 hours a day.",
        "a",
        "",
        "The bus was late again this morning.",
        "state-of-the-art, mother-in-law; (well) \"quoted\" - and so on...",
        "今天天气很好, Владимир said; مرحبا! \U0001F600",
        ordinary_texts()[7],
        FOX * long,
    ]
    return [
        {"query": "How long do cats sleep?", "documents": documents},
        {"query": "", "documents": documents[:3] + documents[-1:]},
        # Cut to halves, and the query alone.
        {"query": FOX * long, "documents": [documents[0], documents[2], documents[-1]]},
        {"query": "lazy dogs " * 12, "documents": [FOX * 3, FOX * long]},
    ]


def expect(folder: Folder, reference: str, cases: list[dict]) -> None:
    logits = torch.tensor([logit for case in cases for logit in case["logits"]])
    assert torch.isfinite(logits).all() and len(logits) > 10
    apart = (logits[:, None] - logits[None]).abs() + 10 * torch.eye(len(logits))
    size = sum(file.stat().st_size for file in folder.path.rglob("*") if file.is_file())
    print(
        f"{folder.path.name}: {len(logits)} pairs, {logits.min():.2f} to {logits.max():.2f}, "
        f"median apart {apart.min(1).values.median():.3f}, {size // 1024} KiB"
    )
    assert logits.std() > 0.05
    head = {"reference": reference, "made_with": {name: version(name) for name in PACKAGES}}
    lines = ",\n".join(json.dumps(case, ensure_ascii=True, separators=(",", ":")) for case in cases)
    text = f'{json.dumps(head)[:-1]}, "cases": [\n{lines}\n]}}\n'
    (folder.path / "expected.json").write_text(text, encoding="ascii")


def rounded(values) -> list[float]:
    return [round_digits(float(value)) for value in values]


def by_cross_encoder(folder: Folder, instructions: list[str] = (), long: int = 20) -> None:
    """Each pair alone; the first request again with instructions."""
    model = CrossEncoder(str(folder.path), device="cpu", local_files_only=True)

    def scored(request: dict, **options) -> dict:
        pairs = [[request["query"], document] for document in request["documents"]]
        logits = model.predict(pairs, batch_size=1, activation_fn=nn.Identity(), **options)
        scores = model.predict(pairs, batch_size=1, **options)
        return {**request, "logits": rounded(logits), "scores": rounded(scores)}

    cases = [scored(request) for request in requests(long)]
    for prompt in instructions:
        cases.append({**scored(requests(long)[0], prompt=prompt), "instruction": prompt})
    expect(folder, "CrossEncoder of sentence-transformers over transformers", cases)


def classifier(model: nn.Module, last: nn.Linear, seed: int) -> nn.Module:
    """Logits far enough apart for each token to show."""
    randomize(model, seed)
    with torch.no_grad():
        last.weight.mul_(6)
    return model


def settings(folder: Folder, **changes) -> None:
    written = json.loads((folder.path / "config.json").read_text())
    folder.json("config.json", {**written, **changes})


def bert(root: Path) -> None:
    """As MiniLM trained on MS MARCO: two segments, and scores that are logits."""
    folder = Folder(root, "bert")
    config = transformers.BertConfig(max_position_embeddings=128, **SIZES)
    model = transformers.BertForSequenceClassification(config)
    classifier(model, model.classifier, 1).save_pretrained(folder.path)
    settings(folder, sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.1.0"})
    folder.tokenizer(word_piece(), WORD_PIECE_SPECIAL, LONGEST, tokenizer_class="BertTokenizer")
    by_cross_encoder(folder, instructions=["Find the answer. "])


def roberta(root: Path) -> None:
    """The activation as sentence-transformers before version 4 names it, and a prompt before each query."""
    folder = Folder(root, "roberta")
    config = transformers.RobertaConfig(
        max_position_embeddings=LONGEST + 2, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1, bos_token_id=0,
        eos_token_id=2, **SIZES,
    )
    model = transformers.RobertaForSequenceClassification(config)
    classifier(model, model.classifier.out_proj, 2).save_pretrained(folder.path)
    settings(folder, sbert_ce_default_activation_function="torch.nn.modules.activation.Sigmoid")
    folder.tokenizer(roberta_pairs(), ROBERTA_SPECIAL, LONGEST, tokenizer_class="RobertaTokenizer")
    folder.json("modules.json", [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    ])
    folder.json("sentence_bert_config.json", {
        "transformer_task": "sequence-classification", "module_output_name": "scores",
        "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
    })
    folder.json("config_sentence_transformers.json", {
        "__version__": {"sentence_transformers": "5.0.0"}, "model_type": "CrossEncoder",
        "prompts": {"web": "search the web: "}, "default_prompt_name": "web",
    })
    by_cross_encoder(folder, instructions=["", "find the same: "])


def xlm_roberta(root: Path) -> None:
    """As BGE reranker v2: no word of sentence-transformers, so that scores are from 0 to 1. In 16 bits."""
    folder = Folder(root, "xlm_roberta")
    config = transformers.XLMRobertaConfig(
        max_position_embeddings=130, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1, bos_token_id=0,
        eos_token_id=2, **SIZES,
    )
    model = transformers.XLMRobertaForSequenceClassification(config)
    classifier(model, model.classifier.out_proj, 3).to(torch.bfloat16).save_pretrained(folder.path)
    settings(folder, dtype="float32")
    folder.tokenizer(unigram(), ROBERTA_SPECIAL, LONGEST, tokenizer_class="XLMRobertaTokenizer")
    by_cross_encoder(folder)


def modernbert(root: Path) -> None:
    """As GTE reranker: the mean of all tokens. As sentence-transformers saves a model."""
    folder = Folder(root, "modernbert")
    config = transformers.ModernBertConfig(
        max_position_embeddings=600, local_attention=16, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2,
        sep_token_id=3, global_attn_every_n_layers=3, classifier_pooling="mean", **SIZES,
    )
    randomize(transformers.ModernBertForSequenceClassification(config), 4).save_pretrained(folder.path)
    tokenizer = modern_pairs()
    special = [(word, tokenizer.token_to_id(word)) for word in ["[CLS]", "[SEP]"]]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    folder.tokenizer(tokenizer, WORD_PIECE_SPECIAL, 600)
    CrossEncoder(str(folder.path), device="cpu", local_files_only=True).save_pretrained(
        str(folder.path), create_model_card=False
    )
    by_cross_encoder(folder, long=60)


BEFORE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. "
    "Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n"
)
AFTER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
TASK = "Given a web search query, retrieve relevant passages that answer the query"


def qwen3(root: Path) -> None:
    """Qwen3-Reranker: the two words that it answers with are tokens of their own."""
    folder = Folder(root, "qwen3")
    longest = 400
    config = transformers.Qwen3Config(
        **{**SIZES, "num_labels": 2, "vocab_size": VOCABULARY + 2}, num_key_value_heads=2, head_dim=16,
        max_position_embeddings=longest, rms_norm_eps=1e-6, tie_word_embeddings=True, bos_token_id=0, eos_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    )
    model = randomize(transformers.Qwen3ForCausalLM(config), 5)
    model.save_pretrained(folder.path)
    (folder.path / "generation_config.json").unlink(missing_ok=True)
    tokenizer = qwen_pairs(closed=False)
    data = json.loads(tokenizer.to_str())
    for word in ["yes", "no"]:
        if word not in data["model"]["vocab"]:
            data["model"]["vocab"][word] = len(data["model"]["vocab"])
    tokenizer = type(tokenizer).from_str(json.dumps(data))
    folder.tokenizer(tokenizer, QWEN_SPECIAL, longest, padding_side="left", tokenizer_class="Qwen2Tokenizer")
    loaded = transformers.AutoTokenizer.from_pretrained(str(folder.path))
    before, after = (loaded.encode(text, add_special_tokens=False) for text in [BEFORE, AFTER])
    yes, no = (loaded.convert_tokens_to_ids(word) for word in ["yes", "no"])
    assert yes is not None and no is not None and yes != no

    def logit(instruction: str, query: str, document: str) -> float:
        text = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
        ids = loaded(text, truncation="longest_first", max_length=longest - len(before) - len(after))["input_ids"]
        with torch.no_grad():
            last = model(torch.tensor([before + ids + after])).logits[0, -1]
        probability = torch.log_softmax(torch.stack([last[no], last[yes]]), dim=0)[1].exp()
        assert (torch.sigmoid(last[yes] - last[no]) - probability).abs() < 1e-5
        return last[yes] - last[no]

    def scored(request: dict, instruction: str) -> dict:
        logits = torch.stack([logit(instruction, request["query"], document) for document in request["documents"]])
        return {**request, "logits": rounded(logits), "scores": rounded(torch.sigmoid(logits))}

    cases = [scored(request, TASK) for request in requests()]
    task = "Find animals"
    cases.append({**scored(requests()[0], task), "instruction": task})
    expect(folder, "transformers, asked as in the model's description", cases)


FAMILIES = [bert, roberta, xlm_roberta, modernbert, qwen3]


def main() -> None:
    root, wanted = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    for family in FAMILIES:
        if not wanted or family.__name__ in wanted:
            family(root)


if __name__ == "__main__":
    main()
