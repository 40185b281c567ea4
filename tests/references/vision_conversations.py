"""What transformers makes of conversations with several images, from the fixtures that `vision.py` has written.

    python tests/references/vision_conversations.py [FAMILY ...]

needs torch, transformers, safetensors, pillow and numpy. Loads `tests/fixtures/vision/<family>/` as anybody would load a
published repository, processor included, and writes `conversations.json` (messages, tokens and text of each case) and
`conversations.safetensors` (image features and first logits) beside the model's files.
"""

import inspect
import json
import pathlib
import sys

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "fixtures" / "vision"
TOKENS = 48
#: A greedy choice nearer than this to the next best could fall differently for reasons of rounding alone.
SMALLEST_GAP = 1e-3
FAMILIES = ["llava", "llava_next", "llava_siglip", "llava_onevision", "pixtral", "mistral3", "qwen2_vl", "qwen2_5_vl",
            "qwen3_vl", "qwen3_vl_moe", "idefics3", "smolvlm", "gemma3"]

QUESTIONS = ["And what is this?", "Which one is larger?", "What differs?", "Who is here?", "Name the colour.", "Why so?",
             "Is there a river?", "How many are there?"]


def image(name):
    return {"type": "image", "path": f"{name}.png"}


def text(words):
    return {"type": "text", "text": words}


def conversations(question):
    """Two images in two messages with an answer between; texts between the images of one message; no image at all."""
    yield [
        {"role": "user", "content": [image("wide"), text("What is this?")]},
        {"role": "assistant", "content": [text("A wave of the sea.")]},
        {"role": "user", "content": [text("Look here:"), image("tall"), text(question)]},
    ]
    yield [
        {"role": "system", "content": [text("Be brief.")]},
        {"role": "user", "content": [text("First"), image("square"), text("then"), image("wide"), text("and"),
                                     image("tall"), text(question)]},
    ]
    yield [{"role": "user", "content": [text("Good morning. " + question)]}]


def answer(model, processor, messages, ends):
    opened = json.loads(json.dumps(messages))
    for message in opened:
        for part in message["content"]:
            if part["type"] == "image":
                part["image"] = Image.open(FIXTURES.parent / "vision_images" / part.pop("path")).convert("RGB")
    inputs = processor.apply_chat_template(opened, tokenize=True, add_generation_prompt=True, return_dict=True,
                                           return_tensors="pt")
    features = []
    if "pixel_values" in inputs:
        takes = inspect.signature(model.model.get_image_features).parameters
        shown = {name: value for name, value in inputs.items() if name in takes}
        features = model.model.get_image_features(**shown, return_dict=True).pooler_output
    if hasattr(model.model, "rope_deltas"):
        model.model.rope_deltas = None
    out = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, eos_token_id=ends, pad_token_id=0,
                         output_logits=True, return_dict_in_generate=True)
    prompt = inputs["input_ids"][0].tolist()
    tokens = out.sequences[0, len(prompt):].tolist()
    logits = torch.stack([step[0] for step in out.logits])
    best = logits.topk(2, dim=-1).values
    parts = features if isinstance(features, (list, tuple)) else [features]
    rows = torch.cat([part.flatten(0, -2) for part in parts]) if len(parts) else torch.zeros(0)
    return prompt, tokens, rows, logits[0], float((best[:, 0] - best[:, 1]).min())


def family(name):
    folder = FIXTURES / name
    processor = AutoProcessor.from_pretrained(folder, use_fast=False)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    file = folder / "generation_config.json"
    ends = json.loads(file.read_text())["eos_token_id"] if file.exists() else processor.tokenizer.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    cases, tensors = [], {}
    for kind in range(3):
        best = None
        for question in QUESTIONS:
            messages = list(conversations(question))[kind]
            prompt, tokens, rows, logits, gap = answer(model, processor, messages, ends)
            if best is None or min(gap, SMALLEST_GAP) * len(set(tokens)) > min(best[5], SMALLEST_GAP) * len(set(best[2])):
                best = (messages, prompt, tokens, rows, logits, gap)
        messages, prompt, tokens, rows, logits, gap = best
        if gap < SMALLEST_GAP:
            sys.exit(f"{name}, conversation {kind}: no question leaves a gap")
        said = tokens[:-1] if tokens[-1] in ends else tokens
        words = processor.tokenizer.decode(said, skip_special_tokens=True)
        for message in messages:
            for part in message["content"]:
                part.pop("type")
        cases.append(dict(messages=messages, prompt=prompt, tokens=tokens, answer=words))
        tensors[f"{kind}.features"] = rows.float().contiguous().clone()
        tensors[f"{kind}.logits"] = logits.float().contiguous().clone()
        print(f"{name} {kind}: {len(prompt)} in, {len(tokens)} out ({len(set(tokens))} differ), gap {gap:.4f}, {words[:50]!r}")
    (folder / "conversations.json").write_text(json.dumps({"cases": cases}, ensure_ascii=False) + "\n")
    save_file(tensors, folder / "conversations.safetensors")


def main():
    torch.set_num_threads(1)
    with torch.no_grad():
        for name in sys.argv[1:] or FAMILIES:
            family(name)


if __name__ == "__main__":
    main()
