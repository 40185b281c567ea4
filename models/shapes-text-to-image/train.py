"""Trains a small Stable Diffusion on pictures of drawn shapes and captions of them (`../shapes/world.py`).

Two stages, as for the published models: first the autoencoder (AutoencoderKL: Kingma and Welling 2013, by pixel and
gradient error; no adversary is needed for flat colours), then the UNet on the latents of drawings
(denoising diffusion by noise prediction: Ho et al. 2020, Rombach et al. 2022), with some captions dropped for
classifier-free guidance (Ho and Salimans 2022). The text encoder begins as the text tower of `../shapes-image-embedding`,
as Stable Diffusion's is CLIP's, and is trained further with the UNet. Output: a complete folder in the diffusers layout
of Stable Diffusion 1.5, weights as float16.
"""

import argparse
import copy
import random
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch.nn.functional import l1_loss, mse_loss
from transformers import CLIPTextModel

HERE = Path(__file__).parent
CLIP = HERE.parent / "shapes-image-embedding"
sys.path.insert(0, str(HERE.parent / "shapes"))
from tokens import build_tokenizer, encode  # noqa: E402
from training import Timer, step  # noqa: E402
from world import SIZE, Scene, caption, draw, scene_for  # noqa: E402

LATENTS = 4
PICTURES = 16384
"""Drawn for the second stage; each is seen many times, with other noise and other words."""


def pictures_of_scenes(rng: random.Random, size: int) -> tuple[torch.Tensor, list[Scene]]:
    scenes = [scene_for(rng, held_out=False) for _ in range(size)]
    pictures = np.stack([np.asarray(draw(scene, rng), dtype=np.float32) for scene in scenes])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1, scenes


def new_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENTS,
        block_out_channels=[16, 32, 48],
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def new_unet(text_width: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        in_channels=LATENTS,
        out_channels=LATENTS,
        block_out_channels=[32, 64, 80],
        # Words are looked at from half the size on, as in SDXL: it costs half as much.
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        layers_per_block=1,
        cross_attention_dim=text_width,
        attention_head_dim=4,
        norm_num_groups=8,
    ).to(memory_format=torch.channels_last)


def gradients(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return pixels.diff(dim=2), pixels.diff(dim=3)


def train_autoencoder(model: AutoencoderKL, rng: random.Random, minutes: float, batch: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    timer = Timer(minutes, 1.5e-3)
    while timer.spent() < 1:
        timer.advance(optimizer)
        pixels, _ = pictures_of_scenes(rng, batch)
        latents = model.encode(pixels).latent_dist
        made = model.decode(latents.sample()).sample
        edges = sum(l1_loss(a, b) for a, b in zip(gradients(made), gradients(pixels)))
        loss = l1_loss(made, pixels) + mse_loss(made, pixels) + edges + 1e-5 * latents.kl().mean()
        step(loss, optimizer)
        if timer.step % 100 == 1:
            timer.tell(f"autoencoder {l1_loss(made, pixels).item():.4f}")


@torch.no_grad()
def latents_of_scenes(autoencoder: AutoencoderKL, rng: random.Random, count: int) -> tuple[list[Scene], torch.Tensor]:
    """Scenes and the latents of a drawing of each."""
    scenes, latents = [], []
    for _ in range(count // 64):
        pixels, drawn = pictures_of_scenes(rng, 64)
        latents.append(autoencoder.encode(pixels).latent_dist.sample() * autoencoder.config.scaling_factor)
        scenes += drawn
    return scenes, torch.cat(latents)


def train_unet(models, scheduler, rng: random.Random, minutes: float, batch: int):
    """Trains UNet and text encoder together; returns their running averages, which paint better than the last step."""
    autoencoder, unet, text_encoder, tokenizer = models
    scenes, all_latents = latents_of_scenes(autoencoder, rng, PICTURES)
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    averages = [copy.deepcopy(unet), copy.deepcopy(text_encoder)]
    timer = Timer(minutes, 1e-3)
    while timer.spent() < 1:
        timer.advance(optimizer)
        chosen = [rng.randrange(len(scenes)) for _ in range(batch)]
        latents = all_latents[chosen].contiguous(memory_format=torch.channels_last)
        captions = ["" if rng.random() < 0.1 else caption(scenes[index], rng) for index in chosen]
        words = text_encoder(input_ids=encode(tokenizer, captions)[0]).last_hidden_state
        noise = torch.randn_like(latents)
        times = torch.randint(0, scheduler.config.num_train_timesteps, (batch,))
        predicted = unet(scheduler.add_noise(latents, noise, times), times, words).sample
        loss = mse_loss(predicted, noise)
        step(loss, optimizer)
        keep = min(0.999, 1 - 1 / timer.step)
        with torch.no_grad():
            for average, model in zip(averages, (unet, text_encoder)):
                for slow, fast in zip(average.parameters(), model.parameters()):
                    slow.lerp_(fast, 1 - keep)
        if timer.step % 100 == 1:
            timer.tell(f"unet {loss.item():.4f}")
    return averages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--autoencoder-minutes", type=float, default=12)
    parser.add_argument("--unet-minutes", type=float, default=45)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--autoencoder-batch", type=int, default=16)
    arguments = parser.parse_args()

    torch.manual_seed(1)
    rng = random.Random(1)
    tokenizer = build_tokenizer()
    text_encoder = CLIPTextModel.from_pretrained(CLIP, torch_dtype=torch.float32)
    autoencoder, unet = new_autoencoder(), new_unet(text_encoder.config.hidden_size)
    for name, model in (("autoencoder", autoencoder), ("unet", unet), ("text encoder", text_encoder)):
        print(name, sum(parameter.numel() for parameter in model.parameters()), "parameters")

    train_autoencoder(autoencoder, rng, arguments.autoencoder_minutes, arguments.autoencoder_batch)
    autoencoder.eval().requires_grad_(False)
    pixels, _ = pictures_of_scenes(rng, 256)
    # The UNet is given latents of about unit size.
    autoencoder.register_to_config(scaling_factor=1 / autoencoder.encode(pixels).latent_dist.sample().std().item())

    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    models = autoencoder, unet, text_encoder, tokenizer
    unet, text_encoder = train_unet(models, scheduler, rng, arguments.unet_minutes, arguments.batch)
    pipeline = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
