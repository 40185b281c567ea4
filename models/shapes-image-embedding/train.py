"""Trains a small CLIP, both towers, on pictures of drawn shapes and captions of them (`../shapes/world.py`).

The loss is CLIP's own (Radford et al. 2021): within a batch, each picture belongs to its caption. No two scenes of a
batch are alike. Output: a complete folder in the layout of the published CLIP models, weights as float16.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy, normalize
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "shapes"))
from tokens import TEXT_LENGTH, build_tokenizer, encode  # noqa: E402
from training import Timer, step  # noqa: E402
from world import SIZE, caption, draw, scene_for  # noqa: E402

WIDTH = 96
PROJECTION = 64
MEAN, STD = 0.5, 0.5


def configuration(vocabulary: int, begin: int, end: int) -> CLIPConfig:
    tower = {"hidden_size": WIDTH, "intermediate_size": 3 * WIDTH, "num_attention_heads": 4, "hidden_act": "quick_gelu"}
    text = tower | {
        "vocab_size": vocabulary,
        "num_hidden_layers": 3,
        "max_position_embeddings": TEXT_LENGTH,
        "projection_dim": PROJECTION,
        "bos_token_id": begin,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    vision = tower | {"image_size": SIZE, "patch_size": 8, "num_hidden_layers": 4, "projection_dim": PROJECTION}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTION)


def batch_of(rng: random.Random, size: int, held_out: bool) -> tuple[torch.Tensor, list[str]]:
    """Pictures and captions of different scenes."""
    scenes = {}
    while len(scenes) < size:
        scene = scene_for(rng, held_out)
        scenes.setdefault(scene.key, scene)
    pictures = [np.asarray(draw(scene, rng), dtype=np.float32) for scene in scenes.values()]
    pixels = (torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255 - MEAN) / STD
    return pixels, [caption(scene, rng) for scene in scenes.values()]


def features(model: CLIPModel, tokenizer, pixels: torch.Tensor, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = encode(tokenizer, texts)
    output = model(input_ids=ids, attention_mask=mask, pixel_values=pixels)
    return normalize(output.image_embeds, dim=-1), normalize(output.text_embeds, dim=-1)


@torch.no_grad()
def found(model: CLIPModel, tokenizer, rng: random.Random, rounds: int, held_out: bool) -> float:
    """How often a caption is nearest to its own picture, among 20."""
    model.eval()
    right = 0
    for _ in range(rounds):
        images, words = features(model, tokenizer, *batch_of(rng, 20, held_out))
        right += int(((words @ images.T).argmax(1) == torch.arange(20)).sum())
    model.train()
    return right / (20 * rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--batch", type=int, default=96)
    arguments = parser.parse_args()

    torch.manual_seed(1)
    rng = random.Random(1)
    tokenizer = build_tokenizer()
    config = configuration(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    model = CLIPModel(config)
    print(f"{sum(parameter.numel() for parameter in model.parameters())} parameters")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    timer = Timer(arguments.minutes, 1e-3)
    while timer.spent() < 1:
        timer.advance(optimizer)
        images, words = features(model, tokenizer, *batch_of(rng, arguments.batch, held_out=False))
        logits = model.logit_scale.exp() * words @ images.T
        target = torch.arange(len(logits))
        loss = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
        step(loss, optimizer)
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6052)
        if timer.step % 200 == 1:
            right = found(model, tokenizer, random.Random(2), 5, held_out=True)
            timer.tell(f"loss {loss.item():.3f}, found of 20 held out {right:.3f}")

    model.eval()
    print(f"held out: {found(model, tokenizer, random.Random(3), 50, held_out=True):.4f} over 1000 captions")
    model.half().save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    side = {"height": SIZE, "width": SIZE}
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": SIZE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": side,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [MEAN] * 3,
        "image_std": [STD] * 3,
    }
    CLIPImageProcessor.from_dict(processor)
    (arguments.out / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")


if __name__ == "__main__":
    main()
