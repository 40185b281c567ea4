"""The tokenizer that the shapes models share: lower-case words of the shapes world, and characters for everything else.

A WordPiece vocabulary: every word of the world's sentences is one token, and any other word is spelled, so no text is
refused. Begin and end marks are CLIP's.
"""

import random

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from world import caption, random_scene

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
TEXT_LENGTH = 32
"""Most tokens of a text, the two marks included."""
CHARACTERS = [chr(code) for code in range(33, 127) if not chr(code).isupper()]


def vocabulary() -> dict[str, int]:
    rng = random.Random(0)
    splitter = pre_tokenizers.BertPreTokenizer()
    words: set[str] = set()
    for _ in range(4000):
        text = caption(random_scene(rng), rng)
        words.update(word for word, _ in splitter.pre_tokenize_str(text))
    words.update(["picture", "photo", "of", "the", "with", "next", "to", "on", "small", "large"])
    entries = [*CHARACTERS, *[f"##{letter}" for letter in CHARACTERS]]
    entries += sorted(word for word in words if len(word) > 1)
    # CLIP's text tower reads its result at the end mark, which it finds as the largest number.
    entries += ["<|unknown|>", BEGIN, END]
    return {entry: number for number, entry in enumerate(entries)}


def build_tokenizer() -> PreTrainedTokenizerFast:
    entries = vocabulary()
    tokenizer = Tokenizer(models.WordPiece(entries, unk_token="<|unknown|>", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}", special_tokens=[(BEGIN, entries[BEGIN]), (END, entries[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        unk_token="<|unknown|>",
        model_max_length=TEXT_LENGTH,
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    batch = tokenizer(texts, padding="max_length", truncation=True, max_length=TEXT_LENGTH, return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"]
