"""Tiny random vision models of each family, and what the reference implementations make of a few images and questions.

    python tests/references/vision.py [FAMILY ...]

needs torch, transformers, tokenizers, safetensors, pillow and numpy. Writes `tests/fixtures/vision/<family>/` in the
layout of the published repositories, with `expected.json` (image, question, tokens and text of each case) and
`expected.safetensors` (pixels, image features and first logits of each case) beside the model's own files.
BLIP, LLaVA 1.5 and 1.6 and Qwen3-VL are transformers' own; Moondream 2 is remote code on the hub, so that
`moondream.py` beside this file says the same in PyTorch.
"""

import json
import pathlib
import sys

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "fixtures" / "vision"
TOKENS = 64
#: A greedy choice nearer than this to the next best could fall differently for reasons of rounding alone.
SMALLEST_GAP = 2e-3

IMAGES = {"wide": (67, 45), "tall": (50, 121), "square": (40, 40), "large": (203, 149)}
CHAT_IMAGE_FIRST = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CHAT_INSTRUCT = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}"
    "{{' [/INST]' }}{% endif %}{% endfor %}"
)
CHAT_VISION_PAD = (
    "{% for message in messages %}{{- '<|im_start|>' + message.role + '\n' }}{%- if message.content is string %}"
    "{{- message.content }}{%- else %}{%- for content in message.content %}"
    "{%- if content.type == 'image' or 'image' in content %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif 'text' in content %}{{- content.text }}{%- endif %}{%- endfor %}{%- endif %}{{- '<|im_end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


def sentences():
    cases = json.loads((ROOT / "references" / "english_small.json").read_text())["cases"]
    return [case["text"] for case in cases if case["text"].isascii()] * 4


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def images():
    """Slow waves with some noise, in colour: something of every frequency, and nothing that compresses to nothing."""
    (FIXTURES / "images").mkdir(parents=True, exist_ok=True)
    found = {}
    for seed, (name, (width, height)) in enumerate(IMAGES.items()):
        random = np.random.default_rng(seed)
        y, x = np.mgrid[0:height, 0:width]
        wave = lambda a, b, c: np.sin(x / a + y / b + c)
        channels = [wave(*(random.uniform(3, 25, 2)), random.uniform(0, 6)) * 90 + 128 for _ in range(3)]
        pixels = np.stack(channels, -1) + random.integers(-3, 4, (height, width, 1))
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(FIXTURES / "images" / f"{name}.png", optimize=True)
        found[name] = image
    return found


def randomize(model, seed, scale=1.0):
    """Weights large enough that every part of the computation shows in the result."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                around = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
                parameter.copy_(around + 0.1 * noise)
            elif "embed" in name or "wte" in name or "pos_emb" in name:
                # Positions louder than words: a text that does not depend on where it stands soon runs in a circle.
                # All of one length, or the longest are said again and again.
                noise = noise / noise.norm(dim=-1, keepdim=True) * parameter.shape[-1] ** 0.5
                parameter.copy_((1.5 if "pos" in name else 0.5) * noise)
            else:
                inside = parameter[0].numel()
                parameter.copy_(scale * noise / inside**0.5)
    return model.eval().float()


def save_weights(folder, tensors, dtype=torch.float32, shards=1):
    tensors = {name: tensor.to(dtype).contiguous().clone() for name, tensor in tensors.items()}
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    names, weight_map = sorted(tensors), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def gaps(logits):
    best = torch.stack(logits).topk(2, dim=-1).values
    return float((best[:, 0] - best[:, 1]).min())


class Dull(Exception):
    """The answers of these weights are not worth comparing with; others will do."""


class Cases:
    """What a family's cases come to, checked for being worth comparing with."""

    def __init__(self, family):
        self.folder, self.cases, self.tensors = FIXTURES / family, [], {}
        self.family = family

    def add(self, image, question, prompt, pixels, features, tokens, logits, text, **more):
        index = len(self.cases)
        gap = gaps(logits)
        if len(set(tokens)) <= len(tokens) // 5 or gap <= SMALLEST_GAP or len(tokens) < 8:
            raise Dull(f"{self.family} {image}: {len(set(tokens))} tokens of {len(tokens)} differ, gap {gap:.5f}")
        case = dict(image=f"{image}.png", question=question, prompt=prompt, tokens=tokens, text=text, **more)
        self.cases.append(case)
        self.tensors[f"{index}.pixels"] = pixels.float().contiguous().clone()
        self.tensors[f"{index}.features"] = features.float().contiguous().clone()
        self.tensors[f"{index}.logits"] = logits[0].float().contiguous().clone()
        print(f"{self.family} {image} {question!r}: {len(prompt)} in, {len(tokens)} out, gap {gap:.4f}, {text[:60]!r}")

    def save(self):
        write_json(self.folder / "expected.json", {"cases": self.cases})
        save_file(self.tensors, self.folder / "expected.safetensors")
        texts = {case["text"] for case in self.cases}
        if len(texts) != len(self.cases):
            raise Dull(f"{self.family}: two cases have one answer")


# BLIP ---------------------------------------------------------------------------------------------------------------


def wordpiece(size, special):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(sentences(), trainer)
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ids)
    return tokenizer


def blip(pictures, seed):
    from transformers import BlipConfig, BlipForConditionalGeneration
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    cases = Cases("blip")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = wordpiece(300, special)
    size = tokenizer.get_vocab_size()
    bos, sep = size, tokenizer.token_to_id("[SEP]")
    text = dict(vocab_size=size + 2, hidden_size=32, encoder_hidden_size=48, intermediate_size=64,
                num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=96, bos_token_id=bos,
                eos_token_id=2, pad_token_id=0, sep_token_id=sep, projection_dim=32)
    vision = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, image_size=32,
                  patch_size=8, projection_dim=32)
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=32, image_text_hidden_size=16)
    config.architectures = ["BlipForConditionalGeneration"]
    model = randomize(BlipForConditionalGeneration(config), seed, 2.0)
    model.text_decoder.cls.predictions.bias.data[sep] -= 6.0
    processor = BlipImageProcessorPil(size={"height": 32, "width": 32})
    cases.folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(cases.folder)
    tokenizer.save(str(cases.folder / "tokenizer.json"))
    write_json(cases.folder / "tokenizer_config.json", dict(
        tokenizer_class="BertTokenizer", do_lower_case=True, model_max_length=512, cls_token="[CLS]", sep_token="[SEP]",
        pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]"))
    write_json(cases.folder / "preprocessor_config.json", dict(
        do_normalize=True, do_rescale=True, do_resize=True, image_processor_type="BlipImageProcessor",
        image_mean=processor.image_mean, image_std=processor.image_std, processor_class="BlipProcessor", resample=3,
        rescale_factor=1 / 255, size={"height": 32, "width": 32}))
    tensors = dict(model.state_dict())
    tensors = {name: tensor for name, tensor in tensors.items() if "decoder.cls.predictions.decoder" not in name}
    save_weights(cases.folder, tensors)
    for image, question in [("wide", ""), ("tall", "a picture of"), ("large", "a photograph of the river")]:
        pixels = processor(pictures[image], return_tensors="pt")["pixel_values"]
        asked = tokenizer.encode(question).ids if question else [bos, 2]
        inputs = dict(input_ids=torch.tensor([asked]))
        # `generate` hands the mask of all tokens to each step, as long as the whole text so far.
        out = model.generate(pixel_values=pixels, **inputs, max_new_tokens=TOKENS, do_sample=False,
                             output_logits=True, return_dict_in_generate=True)
        prompt = [bos] + asked[1:-1]
        tokens = out.sequences[0, len(prompt):].tolist()
        features = model.vision_model(pixel_values=pixels).last_hidden_state[0]
        kept = tokens[:-1] if tokens[-1] == sep else tokens
        cases.add(image, question, prompt, pixels, features, tokens, [step[0] for step in out.logits],
                  tokenizer.decode(prompt[1:] + kept), answer=tokenizer.decode(kept))
    cases.save()


FAMILIES = {"blip": blip}


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pictures = images()
    with torch.no_grad():
        for family in sys.argv[1:] or FAMILIES:
            for seed in range(100):
                try:
                    FAMILIES[family](pictures, seed)
                    break
                except Dull as reason:
                    print(f"seed {seed}: {reason}")
            else:
                sys.exit(f"{family}: no seed gives an answer worth comparing")


if __name__ == "__main__":
    main()
