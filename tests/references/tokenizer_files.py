"""Writes tokenizers.json: the small files of tokenizers, and the tokens that transformers makes of texts by them.

    pip install transformers sentencepiece protobuf
    python tests/references/tokenizer_files.py

Each case is a folder as it could be published: a tokenizer.json with settings that say otherwise, tokens that only other
files have, or a vocabulary without a tokenizer.json. The vocabularies are learnt from a few sentences of our own.
"""

import base64
import io
import json
import pathlib
import tempfile

# This file has the name of the package, which is not to be taken for it.
import sys

sys.path = [path for path in sys.path if pathlib.Path(path or ".").resolve() != pathlib.Path(__file__).parent]

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

SENTENCES = [
    "The cat sleeps on the warm windowsill in Berlin.", "the station is far from the old café, naïve traveller!",
    "Where does the train leave? It leaves at half past twelve.", "Rain falls on the hills and the rivers rise.",
    "CAFÉ Zürich, 12,500 people; 3.14 and more.", "日本語の猫 北京市 Москва работает", "int main() { return 0; }",
    "In Paris the trains are late, and people wait in the rain.",
] * 4

TEXTS = [
    "The cat sleeps.", "berlin Berlin BERLIN", "CAFÉ naïve Zürich", "日本語の猫 and 北京市", "  two  spaces\n\nand\tlines ",
    "<s> [MASK] </s> <mask> <|turn|> x<|turn|>y", "what [NEW] is new<extra>and  <wide>  here", "", "Москва?!", "rain's 3.14 🐈",
    "the train leaves from the old station in the rain at half past twelve and the people wait",
]
LONGEST = 9
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def word_pieces(special, unknown, lowercase=True):
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # Words of both cases, with and without accents.
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    cased = tokenizers.Tokenizer(models.WordPiece(unk_token=unknown))
    cased.normalizer = normalizers.BertNormalizer(lowercase=False)
    cased.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cased.train_from_iterator(SENTENCES + [s.lower() for s in SENTENCES] + ["cafe naive Zurich zurich"], trainer)
    vocabulary = cased.get_vocab()
    tokenizer.model = models.WordPiece(vocabulary, unk_token=unknown)
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(special)
    begin, end = (special[2], special[3]) if special is BERT else (special[0], special[2])
    tokenizer.post_processor = processors.BertProcessing((end, vocabulary[end]), (begin, vocabulary[begin]))
    return tokenizer


def pairs(special, prefix=False):
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if special is ROBERTA:
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=prefix)
    return tokenizer


def sentence_pieces(kind, **settings):
    out = io.BytesIO()
    rules = tempfile.NamedTemporaryFile("w", suffix=".tsv")
    # Few rules of normalization, as published models have all of Unicode's.
    rules.write("FF21\t41\nE9\t65\nE9 20\t65 20\n9\t20\nA\t20\n")
    rules.flush()
    name = {"normalization_rule_name": "identity"} if kind == "bpe" else {"normalization_rule_tsv": rules.name}
    settings = {**name, **settings}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=out, model_type=kind, vocab_size=settings.pop("vocab_size", 180),
        hard_vocab_limit=False, minloglevel=2, **settings,
    )
    return out.getvalue()


def parts(tokenizer):
    """The vocabulary and merges of a tokenizer, as files of their own."""
    with tempfile.TemporaryDirectory() as folder:
        return {pathlib.Path(path).name: pathlib.Path(path).read_text() for path in tokenizer.model.save(folder)}


def cases():
    bert, mpnet, roberta, gpt2 = word_pieces(BERT, "[UNK]"), word_pieces(["<s>", "<pad>", "</s>", "[UNK]", "<mask>"], "[UNK]"), pairs(ROBERTA), pairs(["<|endoftext|>"])
    whole = lambda tokenizer: {"tokenizer.json": tokenizer.to_str()}
    config = lambda **settings: {"tokenizer_config.json": settings}
    model = lambda kind: {"config.json": {"model_type": kind}}
    named = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}
    for name, settings in {
        "cased": {"do_lower_case": False}, "accents kept": {"strip_accents": False}, "accents stripped": {"do_lower_case": False, "strip_accents": True},
        "chinese whole": {"tokenize_chinese_chars": False}, "silent": {}, "left": {"truncation_side": "left"},
        "special tokens split": {"split_special_tokens": True},
    }.items():
        yield f"bert, {name}", {**whole(bert), **config(tokenizer_class="BertTokenizer", **named, **settings), **model("bert")}
    yield "bert, written cased and silent", {**whole(word_pieces(BERT, "[UNK]", lowercase=False)), **config(tokenizer_class="BertTokenizer"), **model("bert")}
    yield "bert without settings", {**whole(word_pieces(BERT, "[UNK]", lowercase=False)), **model("bert")}
    yield "bert as written", {**whole(bert), **config(tokenizer_class="PreTrainedTokenizerFast", do_lower_case=False), **model("bert")}
    yield "modernbert as written", {**whole(bert), **config(tokenizer_class="BertTokenizer", do_lower_case=False), **model("modernbert")}
    for name, kind in {"DistilBertTokenizer": "distilbert", "ElectraTokenizerFast": "electra", "BertTokenizerFast": "nomic_bert"}.items():
        yield f"{name}, cased", {**whole(bert), **config(tokenizer_class=name, do_lower_case=False), **model(kind)}
    yield "mpnet, cased", {**whole(mpnet), **config(tokenizer_class="MPNetTokenizer", do_lower_case=False), **model("mpnet")}
    for prefix in (True, False):
        yield f"roberta, prefix {prefix}", {**whole(pairs(ROBERTA, prefix=not prefix)), **config(tokenizer_class="RobertaTokenizer", add_prefix_space=prefix), **model("roberta")}
    yield "bart, prefix", {**whole(roberta), **config(tokenizer_class="BartTokenizer", add_prefix_space=True), **model("bart")}
    for settings in ({}, {"add_prefix_space": True}):
        yield f"qwen2, written as gpt2, {len(settings)} settings", {**whole(gpt2), **config(tokenizer_class="Qwen2Tokenizer", **settings), **model("qwen3")}
    yield "gpt2, prefix", {**whole(gpt2), **config(tokenizer_class="GPT2Tokenizer", add_prefix_space=True), **model("gpt2")}

    added = lambda content, **flags: {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True, **flags}
    table = {str(len(gpt2.get_vocab()) + at): token for at, token in enumerate([added("<|turn|>"), added("[NEW]", special=False, normalized=True), added("<wide>", lstrip=True, rstrip=True), added("<extra>", single_word=True)])}
    fast = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    yield "tokens that only the settings have", {**whole(gpt2), **config(**fast, added_tokens_decoder=table), **model("llama")}
    yield "a named token that the vocabulary lacks", {**whole(gpt2), **config(**fast, bos_token="<|turn|>", image_token="<extra>", additional_special_tokens=["[NEW]"]), **model("llama")}
    yield "tokens of the map", {**whole(gpt2), **config(**fast), **model("llama"), "special_tokens_map.json": {"bos_token": added("<wide>", lstrip=True), "additional_special_tokens": ["<|turn|>", "[NEW]"]}}
    count = len(gpt2.get_vocab())
    yield "tokens of added_tokens.json", {**whole(gpt2), **config(**fast, bos_token="[NEW]"), **model("llama"), "added_tokens.json": {"<|turn|>": count + 1, "[NEW]": count, "<extra>": count + 2}}

    for name, settings in {"BertTokenizer": {}, "BertTokenizerFast": {"do_lower_case": False}, "DistilBertTokenizer": {"strip_accents": False}}.items():
        yield f"vocab.txt, {name}", {**parts(bert), **config(tokenizer_class=name, **settings), **model("bert")}
    yield "vocab.txt, MPNetTokenizer", {**parts(mpnet), **config(tokenizer_class="MPNetTokenizer"), **model("mpnet")}
    yield "vocab.txt alone", {**parts(bert), **model("bert")}
    yield "pairs, RobertaTokenizer", {**parts(roberta), **config(tokenizer_class="RobertaTokenizer"), **model("roberta")}
    yield "pairs, roberta with prefix", {**parts(roberta), **config(tokenizer_class="RobertaTokenizerFast", add_prefix_space=True), **model("roberta")}
    yield "pairs, GPT2Tokenizer", {**parts(gpt2), **config(tokenizer_class="GPT2Tokenizer"), **model("gpt2")}
    yield "pairs, Qwen2Tokenizer", {**parts(gpt2), **config(tokenizer_class="Qwen2Tokenizer", added_tokens_decoder=table), **model("qwen3")}


def pieces_cases():
    config = lambda **settings: {"tokenizer_config.json": settings}
    model = lambda kind: {"config.json": {"model_type": kind}}
    bpe = sentence_pieces("bpe", byte_fallback=True, vocab_size=420)
    unigram = sentence_pieces("unigram", vocab_size=220)
    for legacy in (True, False):
        yield f"pieces, llama, legacy {legacy}", {"tokenizer.model": bpe, **config(tokenizer_class="LlamaTokenizer", legacy=legacy, add_bos_token=True, add_eos_token=False), **model("llama")}
    whole = llama(bpe)
    for legacy in (True, False, None):
        settings = {} if legacy is None else {"legacy": legacy}
        yield f"llama, written as legacy, legacy {legacy}", {**whole, **config(tokenizer_class="LlamaTokenizerFast", **settings), **model("llama")}
    yield "llama without a prefix", {**whole, **config(tokenizer_class="LlamaTokenizer", add_prefix_space=False), **model("llama")}
    yield "mistral as written", {**whole, **config(tokenizer_class="LlamaTokenizer", legacy=False), **model("mistral")}
    yield "pieces, xlm-roberta", {"sentencepiece.bpe.model": unigram, **config(tokenizer_class="XLMRobertaTokenizer"), **model("xlm-roberta")}
    t5 = sentence_pieces("unigram", vocab_size=220, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    yield "pieces, t5", {"spiece.model": t5, **config(tokenizer_class="T5Tokenizer"), **model("t5")}


def llama(model):
    """A tokenizer.json as it was published for Llama 2, with a space before each part between added tokens."""
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "tokenizer.model").write_bytes(model)
        (pathlib.Path(folder) / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
        (pathlib.Path(folder) / "config.json").write_text('{"model_type": "llama"}')
        tokenizer = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    written = json.loads(tokenizer.to_str())
    written["pre_tokenizer"] = None
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(written))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return {"tokenizer.json": tokenizer.to_str()}


def main():
    out = []
    for name, files in [*cases(), *pieces_cases()]:
        with tempfile.TemporaryDirectory() as folder:
            written = {}
            for file, content in files.items():
                if isinstance(content, bytes):
                    (pathlib.Path(folder) / file).write_bytes(content)
                    written[file] = {"base64": base64.b64encode(content).decode()}
                    continue
                text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
                (pathlib.Path(folder) / file).write_text(text)
                # A tokenizer.json is written without its spaces.
                written[file] = json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":")) if file == "tokenizer.json" else text
            tokenizer = AutoTokenizer.from_pretrained(folder)
            ids = [tokenizer(text)["input_ids"] for text in TEXTS]
            cut = [tokenizer(text, truncation=True, max_length=LONGEST)["input_ids"] for text in TEXTS]
            special = {key: str(value) for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
        out.append({"name": name, "class": type(tokenizer).__name__, "files": written, "ids": ids, "cut": cut, "special": special})
        print(name, type(tokenizer).__name__, sum(map(len, ids)), special)
    # Files that several cases share are written once.
    shared = {}
    for case in out:
        for file, content in case["files"].items():
            key = json.dumps(content)
            case["files"][file] = shared.setdefault(key, len(shared))
    path = pathlib.Path(__file__).with_name("tokenizers.json")
    contents = [json.loads(key) for key in shared]
    path.write_text(json.dumps({"longest": LONGEST, "texts": TEXTS, "files": contents, "cases": out}, ensure_ascii=False) + "\n")
    print(len(out), "cases", path.stat().st_size, "bytes")


main()
