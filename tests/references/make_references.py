"""Writes the reference embeddings that the Rust tests compare against.

Loads a sentence-transformers folder (f32, CPU) and embeds a fixed list of
ordinary and odd texts, one at a time. Call:

    python make_references.py MODEL_DIR OUTPUT.json [--name NAME]

Needs the PyPI packages torch, transformers and sentence-transformers.
"""

import argparse
import json
import unicodedata
from importlib.metadata import version
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer

PACKAGES = ["sentence-transformers", "transformers", "tokenizers", "torch"]


def ordinary_texts() -> list[str]:
    """Sentences and paragraphs such as a user would send."""
    return [
        "Hello",
        "Good morning!",
        "The cat sleeps on the warm windowsill.",
        "How do I reset my password?",
        "I would like a table for two at half past seven, please.",
        "The train to the coast leaves from platform nine in ten minutes.",
        "Heavy rain is expected in the north, with strong winds along the coast by evening.",
        "She read the letter twice, folded it carefully, and put it back in the drawer "
        "without saying a word to anyone in the room.",
        "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen; almost "
        "all life on Earth depends on it, directly or through the food that it eats.",
        "An actor owns its state and talks to others only by messages. A supervisor starts "
        "it, watches it and starts it again when it fails. Because nothing is shared, a "
        "fault in one actor cannot corrupt another, and the system as a whole stays up.",
        "What's the difference between it's and its? I don't know, and I can't ask.",
        "state-of-the-art, mother-in-law; (well) \"quoted\" - and so on...",
    ]


def odd_texts() -> list[str]:
    """Texts that break tokenizers, limits and assumptions."""
    accents = "Café naïve façade, Ångström, coöperate, jalapeño, Dvořák"
    return [
        "",
        " ",
        "\n\n\n",
        "\t \r\n \t",
        "   leading and trailing spaces   ",
        "many     spaces\tand\ttabs\nand\nlines",
        ".",
        "?!?!?!",
        "the " * 3000,
        "The quick brown fox jumps over the lazy dog. " * 200,
        "I like it very much \U0001F600\U0001F680❤\ufe0f",
        "\U0001F468\u200d\U0001F469\u200d\U0001F467\u200d\U0001F466 "
        "\U0001F3F3\ufe0f\u200d\U0001F308 \U0001F1FA\U0001F1F3 \U0001F44D\U0001F3FD",
        "今天天气很好,我们去公园散步吧。",
        "東京の桜はとても美しいです。カタカナとひらがな。",
        "مرحبا بكم في المكتبة الجديدة",
        "नमस्ते, आप कैसे हैं?",
        "Быстрая коричневая лиса прыгает через ленивую собаку.",
        "สวัสดีครับ วันนี้อากาศดีมาก",
        "안녕하세요, 만나서 반갑습니다.",
        "Meet me at 東京駅 at noon, Владимир said; مرحبا!",
        unicodedata.normalize("NFC", accents),
        unicodedata.normalize("NFD", accents),
        "Z\u0337\u0321\u0322a\u0334\u0327\u035cl\u0338\u0328\u035cg\u0335\u0322\u0327o\u0336\u0321\u0362",
        "[CLS] hello [SEP]",
        "[MASK]",
        "[PAD] [PAD]",
        "[UNK]",
        "a [MASK] in the middle of a sentence [SEP] and a second part",
        "https://www.example.org/path/to/page.html?query=rust&lang=en#section-2",
        "someone.else+tag@mail.example.com",
        "fn main() { println!(\"{}\", vec![1, 2, 3].iter().sum::<i32>()); }",
        "3.14159 2,718 1e-9 0xDEADBEEF 192.168.0.1 2024-02-29T23:59:60Z +49 (30) 123456",
        "1234567890" * 8,
        "nul\x00 bell\x07 escape\x1b[31m delete\x7f next\x85line",
        "zero\u200bwidth\u200cjoiners\u200dand\u2060word\ufeffjoiner and soft\u00adhyphen",
        "pneumonoultramicroscopicsilicovolcanoconiosis" * 3,
        "supercalifragilisticexpialidocious" * 8,
        "THIS IS ALL IN UPPERCASE AND VERY LOUD",
        "<p class=\"intro\">Hello, <b>world</b> &amp; everyone!</p><br/>",
        "½ ² Ⅷ ℃ ﬁne ligature ａｂｃ fullwidth İstanbul ǅ ß",
        "\u202eright to left override\u202c and replacement � and private \ue000",
    ]


def round_digits(value: float) -> float:
    """Keeps seven significant digits: a little more than an f32 holds reliably."""
    return float(f"{value:.7g}")


def embed(model: SentenceTransformer, text: str) -> list[float]:
    """One text at a time, so that padding plays no part in the reference."""
    vector = model.encode([text], batch_size=1, show_progress_bar=False)[0]
    return [round_digits(x) for x in vector.tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--name", help="model name to record; default: the folder's name")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = SentenceTransformer(str(args.model_dir), device="cpu", local_files_only=True).float()
    cases = [{"text": t, "embedding": embed(model, t)} for t in ordinary_texts() + odd_texts()]
    document = {
        "model": args.name or args.model_dir.resolve().name,
        "made_with": {name: version(name) for name in PACKAGES},
        "cases": cases,
    }
    lines = ",\n".join(json.dumps(c, ensure_ascii=True, separators=(",", ":")) for c in cases)
    head = json.dumps({k: document[k] for k in ("model", "made_with")}, ensure_ascii=True)[:-1]
    args.output.write_text(f'{head}, "cases": [\n{lines}\n]}}\n', encoding="ascii")
    print(f"{len(cases)} cases, {args.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
