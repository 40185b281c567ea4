"""Writes what llama.cpp makes of texts with each pre-tokenizer of byte-level BPE, and of tokens of each kind, to
tests/fixtures/gguf_tokenizers. The vocabulary of vocabulary.gguf is trained on the texts without any split, so that its
tokens reach over the splits of most pre-tokenizers, and another split gives other tokens. Call:

    python gguf_tokenizers.py

Needs the PyPI packages numpy, gguf, tokenizers and xllamacpp.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from gguf_variants import ask, serve

FOLDER = Path(__file__).resolve().parent.parent / "fixtures" / "gguf_tokenizers"
SPLITS = Path(__file__).resolve().parent.parent.parent / "src" / "generation" / "gguf_tokens" / "splits.rs"

TEXTS = [
    "Hello World, it's 2024-05-17: I'LL pay $1,234.50 (or 99%)!",
    "  two  spaces   and\n\nlines\r\n\t tabs \n x",
    "camelCase HTTPServer snake_case_name // comment /* x */ != <= ==> {a: [1, 2]}",
    "naïve café Ångström ΑΒΓαβγ Привет мир",
    "日本語のテキスト、中文文本。한국어 텍스트 １２３",
    "we've they're don't O'Neil 'quoted' ''double'' 12345678 007 3.14159",
    "a\n\n\nb  \n  c\u00a0d … — “x” ¿y? #tag @user a/b\\c",
    "हिन्दी पाठ العربية ไทย 🦀🦀 e\u0301",
    "ends with spaces   ",
    "\n",
]


def vocabulary():
    """Tokens and merges."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(TEXTS * 2, trainer)
    model = json.loads(trained.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [" ".join(merge) for merge in model["merges"]]


def write(path, pre, tokens, merges):
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {
        "context_length": 512, "embedding_length": 32, "block_count": 1, "feed_forward_length": 32,
        "attention.head_count": 4,
    }.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_add_bos_token(False)
    tensors = {"token_embd": (len(tokens), 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
    tensors |= {f"blk.0.{name}": (32, 32) for name in
                ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]}
    for name, shape in tensors.items():
        kind = numpy.float32 if len(shape) == 1 else numpy.float16
        writer.add_tensor(f"{name}.weight", numpy.zeros(shape, dtype=kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def one(pre):
    """The tokens of all texts, as llama.cpp has them."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "model.gguf"
        write(path, pre, *vocabulary())
        server = serve(path)
        body = lambda text: {"content": text, "add_special": False, "parse_special": False}
        print("TOKENS" + json.dumps([ask(server, "/tokenize", body(text))["tokens"] for text in TEXTS]), flush=True)
        # Its threads may not end.
        os._exit(0)


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    table = SPLITS.read_text().split("const SPLITS", 1)[1].split("];", 1)[0]
    names = [name for name in re.findall(r'"([a-z0-9._-]+)"', table) if not name.startswith("[")]
    tokens, merges = vocabulary()
    (FOLDER / "vocabulary.json").write_text(json.dumps({"tokens": tokens, "merges": merges}, ensure_ascii=False) + "\n")
    expected = {}
    for name in names:
        # llama.cpp may end the process.
        try:
            run = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, timeout=20)
            output = run.stdout + run.stderr
        except subprocess.TimeoutExpired as error:
            output = (error.stdout or b"").decode()
        found = [line for line in output.splitlines() if line.startswith("TOKENS")]
        if not found:
            print(f"{name}: {output[-300:]}")
            continue
        expected[name] = json.loads(found[0].removeprefix("TOKENS"))
    by_tokens = {}
    for name, ids in expected.items():
        by_tokens.setdefault(json.dumps(ids), []).append(name)
    cases = [f'{{"pre": {json.dumps(names)}, "tokens": {ids}}}' for ids, names in by_tokens.items()]
    texts = json.dumps(TEXTS, ensure_ascii=False)
    (FOLDER / "expected.json").write_text(f'{{"texts": {texts}, "cases": [\n' + ",\n".join(cases) + "\n]}\n")
    print(f"{len(expected)} of {len(names)} pre-tokenizers, {len(by_tokens)} different")


if __name__ == "__main__":
    one(sys.argv[1]) if len(sys.argv) > 1 else main()
