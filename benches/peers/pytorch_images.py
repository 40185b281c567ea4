"""Measures PyTorch beside this crate: a step of a UNet of Stable Diffusion 1.5's shape, and images through CLIP ViT-B/32's.

    cargo bench --bench images --no-run
    python benches/peers/pytorch_images.py FOLDER BENCHMARK [--threads N] [--turns N]

BENCHMARK is the program that the first command names. The models, with random weights in 32 bits, are made in FOLDER
where they are not there yet: some 4 GB. Prints the best of the turns and their ratio. Needs the PyPI packages torch,
transformers, diffusers, tokenizers and pillow.
"""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPImageProcessor, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

sys.path.insert(0, str(Path(__file__).parents[2] / "tests/references"))
from stable_diffusion import LENGTH, SHARED, words_tokenizer  # noqa: E402

# As in benches/images.rs.
PAINTED, EMBEDDED, BATCH = 256, 224, 8


def make_painter(folder):
    tokenizer = words_tokenizer(folder / "tokenizer", "<|endoftext|>")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=3072,
        num_attention_heads=12,
        max_position_embeddings=LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            sample_size=512,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        # The other settings of Stable Diffusion 1.5 are the defaults.
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        scheduler=PNDMScheduler(**SHARED, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def make_embedder(folder):
    # The defaults are those of ViT-B/32.
    CLIPVisionModelWithProjection(CLIPVisionConfig()).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)


def best(times, work):
    def timed():
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return min(timed() for _ in range(times + 1))


@torch.inference_mode()
def torch_times(painter, embedder, times):
    unet = UNet2DConditionModel.from_pretrained(painter / "unet").eval()
    latents = torch.randn(2, 4, PAINTED // 8, PAINTED // 8)
    prompts = torch.randn(2, LENGTH, 768)
    step = best(times, lambda: unet(latents, 500, prompts).sample)
    del unet
    encoder = CLIPVisionModelWithProjection.from_pretrained(embedder).eval()
    pixels = torch.randn(BATCH, 3, EMBEDDED, EMBEDDED)
    return {"step": step, "batch": best(times, lambda: encoder(pixels).image_embeds)}


def our_times(benchmark, painter, embedder, threads, times):
    command = [benchmark, "--painter", painter, "--embedder", embedder, "--threads", str(threads), "--times", str(times)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name: float(seconds) for name, seconds in re.findall(r"^(\w+): ([\d.]+) s$", lines, re.M)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("benchmark")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=2)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    painter, embedder = options.folder / "painter", options.folder / "embedder"
    for folder, make in [(painter, make_painter), (embedder, make_embedder)]:
        if not folder.exists():
            make(folder)

    turns = {"ours": [], "PyTorch": []}
    for _ in range(options.turns):
        turns["ours"].append(our_times(options.benchmark, painter, embedder, options.threads, 3))
        turns["PyTorch"].append(torch_times(painter, embedder, 3))
    for figure, name in [("step", f"step at {PAINTED} x {PAINTED} with guidance"), ("batch", f"{BATCH} images")]:
        ours, peer = (min(turn[figure] for turn in turns[side]) for side in ("ours", "PyTorch"))
        print(f"{name}: ours {ours:.3f} s, PyTorch {peer:.3f} s, {peer / ours:.2f} times as fast")


if __name__ == "__main__":
    main()
