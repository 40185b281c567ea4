"""Writes the tiny image embedders of tests/fixtures/transformers_image_embedding, with transformers' vectors beside them.

They are families that candle-transformers computes. Folders and `expected.json` are as image_embedding.py writes them, but
the configurations have the keys that published repositories have. Call:

    python long_tail_images.py [FAMILY ...]

The trainer of WordPiece tokenizers breaks ties by chance, so that a new run gives other tokens, and with them other vectors.

Needs the PyPI packages of image_embedding.py and sentence-transformers.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import (
    AutoConfig, ChineseCLIPImageProcessorPil, ChineseCLIPModel, PreTrainedTokenizerFast, ViTImageProcessorPil, ViTModel,
)

import image_embedding as images
from text_embedding import VOCABULARY, WORD_PIECE_SPECIAL, word_piece

images.OUT = Path(__file__).resolve().parent.parent / "fixtures" / "transformers_image_embedding"
VISION = dict(
    dropout=0.0, hidden_act="quick_gelu", hidden_size=48, image_size=32, initializer_factor=1.0, initializer_range=0.02,
    intermediate_size=64, layer_norm_eps=1e-05, model_type="chinese_clip_vision_model", num_attention_heads=4,
    num_channels=3, num_hidden_layers=3, patch_size=8)
TEXT = dict(
    architectures=["ChineseCLIPTextModel"], attention_probs_dropout_prob=0.1, bos_token_id=0, directionality="bidi",
    eos_token_id=2, hidden_act="gelu", hidden_dropout_prob=0.1, hidden_size=32, initializer_range=0.02,
    intermediate_size=64, layer_norm_eps=1e-12, max_position_embeddings=64, model_type="chinese_clip_text_model",
    num_attention_heads=4, num_hidden_layers=3, output_past=True, pad_token_id=0, pooler_fc_size=32,
    pooler_num_attention_heads=4, pooler_num_fc_layers=3, pooler_size_per_head=8, pooler_type="first_token_transform",
    type_vocab_size=2, vocab_size=VOCABULARY)


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


def chinese_clip() -> None:
    """As OFA-Sys/chinese-clip-vit-base-patch16: BERT's tokens; the whole image is made square."""
    folder = images.OUT / "chinese_clip"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=word_piece(), model_max_length=52, **WORD_PIECE_SPECIAL)
    tokenizer.save_pretrained(folder)
    settings = dict(
        architectures=["ChineseCLIPModel"], initializer_factor=1.0, logit_scale_init_value=2.6592,
        model_type="chinese_clip", projection_dim=24, text_config=TEXT, text_config_dict=None, torch_dtype="float32",
        vision_config=VISION, vision_config_dict=None)
    processor = ChineseCLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
    record("chinese_clip", settings, ChineseCLIPModel, 1, processor, padding=True)


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


FAMILIES = [chinese_clip, vit]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for family in FAMILIES:
        if not sys.argv[1:] or family.__name__ in sys.argv[1:]:
            family()
