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
from transformers import AutoConfig, ViTImageProcessorPil, ViTModel

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


FAMILIES = [vit]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for family in FAMILIES:
        if not sys.argv[1:] or family.__name__ in sys.argv[1:]:
            family()
