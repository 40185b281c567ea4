"""Writes the tiny image embedders of tests/fixtures/transformers_image_embedding, with transformers' vectors beside them.

They are families that candle-transformers computes. Folders and `expected.json` are as image_embedding.py writes them, but
the configurations have the keys that published repositories have. Call:

    python long_tail_images.py [FAMILY ...]

Needs the PyPI packages of image_embedding.py.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, ChineseCLIPImageProcessorPil, ChineseCLIPModel, ViTImageProcessorPil, ViTModel

import image_embedding as images

images.OUT = Path(__file__).resolve().parent.parent / "fixtures" / "transformers_image_embedding"


def record(family: str, settings: dict, kind, seed: int, processor, padding) -> None:
    """The published configuration takes the place of the one that transformers writes."""
    folder = images.OUT / family
    folder.mkdir(parents=True, exist_ok=True)
    published = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(published)
    model = kind(AutoConfig.from_pretrained(folder))
    images.randomise(model, seed)
    images.record(family, model, processor, padding)
    (folder / "config.json").write_text(published)


def vit() -> None:
    """As facebook/dino-vitb16: the vector is that of the first token, and there is no pooler."""
    settings = dict(
        architectures=["ViTModel"], attention_probs_dropout_prob=0.0, hidden_act="gelu", hidden_dropout_prob=0.0,
        hidden_size=48, image_size=32, initializer_range=0.02, intermediate_size=64, layer_norm_eps=1e-12,
        model_type="vit", num_attention_heads=4, num_channels=3, num_hidden_layers=3, patch_size=8, qkv_bias=True,
        torch_dtype="float32")
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32}, **images.IMAGENET)
    with_pooler = images.vectors
    images.vectors = lambda model, inputs, _: images.digits(model(**inputs).last_hidden_state.detach()[0, 0])
    record("vit", settings, lambda config: ViTModel(config, add_pooling_layer=False), 2, processor, padding=None)
    images.vectors = with_pooler


CHINESE = ["一只猫的照片", "木桌上的一杯咖啡，从上面看。", "星空", "", "a photo of a cat", "火箭 launch 在晚上，1969年", "很长的话" * 20]


def chinese_clip() -> None:
    """As OFA-Sys/chinese-clip-vit-base-patch16: towers' settings twice, a vocabulary alone, and no pooler of texts."""
    folder = images.OUT / "chinese_clip"
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted({letter for text in CHINESE for letter in text if ord(letter) > 127})
    latin = [chr(code) for code in range(ord("a"), ord("z") + 1)] + list("0123456789,.")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "photo", "cat", "la", "##unch"]
    vocabulary = words + latin + ["##" + letter for letter in latin] + letters
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 32}) + "\n")
    text = dict(
        architectures=["ChineseCLIPTextModel"], attention_probs_dropout_prob=0.1, bos_token_id=0, directionality="bidi",
        eos_token_id=2, hidden_act="gelu", hidden_dropout_prob=0.1, hidden_size=32, initializer_range=0.02,
        intermediate_size=64, layer_norm_eps=1e-12, max_position_embeddings=40, model_type="chinese_clip_text_model",
        num_attention_heads=4, num_hidden_layers=2, output_past=True, pad_token_id=0, pooler_fc_size=768,
        pooler_num_attention_heads=12, pooler_num_fc_layers=3, pooler_size_per_head=128,
        pooler_type="first_token_transform", type_vocab_size=2, vocab_size=len(vocabulary))
    vision = dict(
        attention_dropout=0.0, dropout=0.0, hidden_act="quick_gelu", hidden_size=48, image_size=32, initializer_factor=1.0,
        initializer_range=0.02, intermediate_size=64, layer_norm_eps=1e-05, model_type="chinese_clip_vision_model",
        num_attention_heads=4, num_channels=3, num_hidden_layers=3, patch_size=8, projection_dim=512)
    settings = dict(
        architectures=["ChineseCLIPModel"], initializer_factor=1.0, logit_scale_init_value=2.6592,
        model_type="chinese_clip", projection_dim=24, text_config=text, text_config_dict=text, torch_dtype="float32",
        vision_config=vision, vision_config_dict=vision)
    processor = ChineseCLIPImageProcessorPil(
        size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}, do_center_crop=True)
    usual, images.TEXTS = images.TEXTS, CHINESE
    record("chinese_clip", settings, ChineseCLIPModel, 3, processor, padding=True)
    images.TEXTS = usual


FAMILIES = [vit, chinese_clip]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for family in FAMILIES:
        if not sys.argv[1:] or family.__name__ in sys.argv[1:]:
            family()
