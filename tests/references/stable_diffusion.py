"""Makes tiny random Stable Diffusion pipelines and records what diffusers makes of them.

Each family gets a folder in the layout of its published repositories, with
`expected.json` (prompts and settings) and `expected.safetensors` beside it: what the
text encoders, one prediction of the UNet and the decoder give, and pictures
painted from recorded noise with each scheduler. Call:

    python stable_diffusion.py OUTPUT_DIR [FAMILY ...]

Needs the PyPI packages torch, transformers, diffusers and tokenizers.
"""

import argparse
import json
import shutil
from pathlib import Path

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.schedulers import scheduling_euler_ancestral_discrete as ancestral
from diffusers.schedulers import scheduling_lcm as consistency
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WORDS = """a red circle left of a blue square, photograph of a cat on the windowsill at dusk
an old harbour in the rain with boats and lights, oil painting of mountains and a lake
highly detailed, blurry, low quality, the quick brown fox jumps over the lazy dog"""
PROMPT = "A red circle, left of 2 blue squares! Don't blur"
NEGATIVE = "blurry, low quality"
TEXTS = [PROMPT, NEGATIVE, "", "  Caf\u00e9\n\u6771\u4eac \U0001f63a!! ", "the quick brown fox " * 20, "<|endoftext|> a cat"]
LENGTH = 24
NOISES = 8
SHARED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def words_tokenizer(folder: Path, pad: str) -> CLIPTokenizer:
    """A byte-level BPE like CLIP's, with few merges, saved as vocabulary and merges."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    # As CLIP's vocabulary: all bytes, all bytes at the end of a word, merges, special tokens.
    trainer = trainers.BpeTrainer(vocab_size=640, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator(WORDS.splitlines(), trainer)
    saved = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in saved["merges"]][:90]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = letters + [f"{letter}</w>" for letter in letters]
    tokens += [left + right for left, right in merges if left + right not in tokens]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special | {"pad_token": pad}))
    settings = {"model_max_length": LENGTH, "tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | special))
    return CLIPTokenizer.from_pretrained(folder)


def text_encoder(tokenizer: CLIPTokenizer, kind: type, layers: int, width: int, act: str, legacy_end: bool):
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        hidden_act=act,
        projection_dim=24,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=2 if legacy_end else tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return kind(config)


def unet(**settings) -> UNet2DConditionModel:
    defaults = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(**(defaults | settings))


def autoencoder(scaling: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
        sample_size=64,
        scaling_factor=scaling,
    )


def tiny_autoencoder() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(2, 1, 1, 0),
    )


def randomise(model: torch.nn.Module, generator: torch.Generator, gain: float) -> None:
    """Weights that keep numbers at one size from layer to layer; norms and biases that matter."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            value = 0.2 * noise
        elif "norm" in name and parameter.ndim == 1:
            value = 1 + 0.3 * noise
        elif "embedding" in name and name.endswith("embedding.weight"):
            value = 0.5 * noise
        else:
            value = gain * noise / parameter[0].numel() ** 0.5
        parameter.data.copy_(value)


def old_names(path: Path, rename) -> None:
    tensors = load_file(path)
    save_file({rename(name): value.clone() for name, value in tensors.items()}, path, metadata={"format": "pt"})


def old_attention(name: str) -> str:
    for new, old in [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")]:
        name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
    return name


def prefixed(name: str) -> str:
    return name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"


def make_sd15(folder: Path, generator: torch.Generator):
    tokenizer = words_tokenizer(folder / "tokenizer", "<|endoftext|>")
    encoder = text_encoder(tokenizer, CLIPTextModel, 2, 32, "quick_gelu", True)
    pipe = StableDiffusionPipeline(
        vae=autoencoder(0.18215),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet(cross_attention_dim=32, attention_head_dim=4),
        scheduler=PNDMScheduler(**SHARED, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipe, {"rename": True}


def make_sd21(folder: Path, generator: torch.Generator):
    tokenizer = words_tokenizer(folder / "tokenizer", "!")
    encoder = text_encoder(tokenizer, CLIPTextModel, 2, 32, "gelu", True)
    pipe = StableDiffusionPipeline(
        vae=autoencoder(0.18215),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet(cross_attention_dim=32, attention_head_dim=(2, 4), use_linear_projection=True),
        scheduler=DDIMScheduler(
            **SHARED, prediction_type="v_prediction", steps_offset=1, set_alpha_to_one=False, clip_sample=False
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipe, {"shards": "unet", "numbers": {"vae": torch.float16}}


def make_sd_inpaint(folder: Path, generator: torch.Generator):
    """A UNet that takes a mask and the image without what the mask leaves; first_images.py records what it paints."""
    tokenizer = words_tokenizer(folder / "tokenizer", "<|endoftext|>")
    pipe = StableDiffusionInpaintPipeline(
        vae=autoencoder(0.18215),
        text_encoder=text_encoder(tokenizer, CLIPTextModel, 2, 32, "quick_gelu", True),
        tokenizer=tokenizer,
        unet=unet(cross_attention_dim=32, attention_head_dim=4, in_channels=9),
        scheduler=PNDMScheduler(**SHARED, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipe, {"half": True}


def make_xl(folder: Path, scheduler, kind=StableDiffusionXLPipeline, **network) -> StableDiffusionXLPipeline:
    tokenizer = words_tokenizer(folder / "tokenizer", "<|endoftext|>")
    tokenizer_2 = words_tokenizer(folder / "tokenizer_2", "!")
    first = text_encoder(tokenizer, CLIPTextModel, 3, 16, "quick_gelu", True)
    second = text_encoder(tokenizer_2, CLIPTextModelWithProjection, 3, 16, "gelu", False)
    return kind(
        vae=autoencoder(0.13025),
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet(
            block_out_channels=(8, 16),
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=(2, 4),
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24 + 6 * 8,
            **network,
        ),
        scheduler=scheduler,
        add_watermarker=False,
    )


def make_sdxl(folder: Path, generator: torch.Generator):
    scheduler = EulerDiscreteScheduler(**SHARED, steps_offset=1, timestep_spacing="leading")
    numbers = {"vae": torch.float16, "text_encoder": torch.float16, "unet": torch.bfloat16}
    return make_xl(folder, scheduler), {"numbers": numbers}


def make_sdxl_inpaint(folder: Path, generator: torch.Generator):
    scheduler = EulerDiscreteScheduler(**SHARED, steps_offset=1, timestep_spacing="leading")
    return make_xl(folder, scheduler, StableDiffusionXLInpaintPipeline, in_channels=9), {"half": True}


def make_sdxl_turbo(folder: Path, generator: torch.Generator):
    scheduler = EulerAncestralDiscreteScheduler(**SHARED, timestep_spacing="trailing")
    return make_xl(folder, scheduler), {"half": True}


def make_sd_turbo(folder: Path, generator: torch.Generator):
    tokenizer = words_tokenizer(folder / "tokenizer", "!")
    encoder = text_encoder(tokenizer, CLIPTextModel, 2, 32, "gelu", True)
    pipe = StableDiffusionPipeline(
        vae=autoencoder(0.18215),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet(cross_attention_dim=32, attention_head_dim=(2, 4), use_linear_projection=True),
        scheduler=EulerDiscreteScheduler(**SHARED, steps_offset=1, timestep_spacing="trailing"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipe, {"half": True, "preview": tiny_autoencoder()}


def make_sd_tiny(folder: Path, generator: torch.Generator):
    tokenizer = words_tokenizer(folder / "tokenizer", "<|endoftext|>")
    pipe = StableDiffusionPipeline(
        vae=tiny_autoencoder(),
        text_encoder=text_encoder(tokenizer, CLIPTextModel, 2, 32, "quick_gelu", True),
        tokenizer=tokenizer,
        unet=unet(cross_attention_dim=32, attention_head_dim=4),
        scheduler=DDIMScheduler(**SHARED, steps_offset=1, set_alpha_to_one=False, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipe, {"half": True}


def make_lcm(folder: Path, generator: torch.Generator):
    tokenizer = words_tokenizer(folder / "tokenizer", "<|endoftext|>")
    encoder = text_encoder(tokenizer, CLIPTextModel, 2, 32, "quick_gelu", True)
    pipe = LatentConsistencyModelPipeline(
        vae=autoencoder(0.18215),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet(cross_attention_dim=32, attention_head_dim=4, time_cond_proj_dim=16),
        scheduler=LCMScheduler(**SHARED, steps_offset=1, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipe, {"numbers": {"vae": torch.float16, "unet": torch.float16, "text_encoder": torch.float16}}


FAMILIES = {"sd15": make_sd15, "sd21": make_sd21, "sdxl": make_sdxl, "sdxl_turbo": make_sdxl_turbo}
FAMILIES |= {"sd_turbo": make_sd_turbo, "sd_tiny": make_sd_tiny, "lcm": make_lcm}
FAMILIES |= {"sd_inpaint": make_sd_inpaint, "sdxl_inpaint": make_sdxl_inpaint}
SCHEDULERS = {
    "ddim": DDIMScheduler,
    "pndm": PNDMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "lcm": LCMScheduler,
}
# Settings that repositories change.
VARIANTS = [
    {"name": "euler_karras", "scheduler": "euler", "changes": {"use_karras_sigmas": True}},
    {"name": "euler_linspace", "scheduler": "euler", "changes": {"timestep_spacing": "linspace"}},
    {"name": "euler_last", "scheduler": "euler", "changes": {"final_sigmas_type": "sigma_min"}},
    {"name": "dpm_karras", "scheduler": "dpm++", "changes": {"use_karras_sigmas": True}},
    {"name": "dpm_third", "scheduler": "dpm++", "steps": 7, "changes": {"solver_order": 3}},
    {"name": "dpm_long_third", "scheduler": "dpm++", "steps": 16, "changes": {"solver_order": 3}},
    {"name": "dpm_heun", "scheduler": "dpm++", "changes": {"solver_type": "heun", "timestep_spacing": "trailing"}},
    {"name": "dpm_linspace", "scheduler": "dpm++", "changes": {"timestep_spacing": "linspace"}},
    {"name": "pndm_trailing", "scheduler": "pndm", "changes": {"timestep_spacing": "trailing"}},
    {"name": "ddim_linspace", "scheduler": "ddim", "changes": {"timestep_spacing": "linspace"}},
    {
        "name": "zero_snr",
        "scheduler": "ddim",
        "changes": {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "set_alpha_to_one": True},
    },
    {"name": "euler_zero_snr", "scheduler": "euler", "changes": {"rescale_betas_zero_snr": True}},
    {"name": "linear", "scheduler": "ddim", "changes": {"beta_schedule": "linear", "beta_end": 0.02}},
    {"name": "cosine", "scheduler": "ddim", "changes": {"beta_schedule": "squaredcos_cap_v2"}},
]
LCM_VARIANTS = [
    {"name": "single", "steps": 1, "picture": True},
    {"name": "seven", "steps": 7},
    {"name": "weak", "guidance": 1.0},
    {"name": "clipped", "changes": {"clip_sample": True}},
    {"name": "velocity", "changes": {"prediction_type": "v_prediction"}},
    {"name": "few_original", "changes": {"original_inference_steps": 9, "timestep_scaling": 0.001}},
]


def save(pipe, folder: Path, options: dict) -> None:
    if tiny := options.get("preview"):
        tiny.save_pretrained(folder / "taesd")
    if options.get("half"):
        pipe.to(torch.float16)
        pipe.save_pretrained(folder, variant="fp16")
        return
    for part, numbers in options.get("numbers", {}).items():
        getattr(pipe, part).to(numbers)
    pipe.save_pretrained(folder)
    if options.get("rename"):
        # The names of the first published files.
        old_names(folder / "vae/diffusion_pytorch_model.safetensors", old_attention)
        old_names(folder / "text_encoder/model.safetensors", prefixed)
    if shards := options.get("shards"):
        shutil.rmtree(folder / shards)
        getattr(pipe, shards).save_pretrained(folder / shards, max_shard_size="80KB")


def paint(pipe, noise: torch.Tensor, settings: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """The last latents and the picture, from 0 to 1."""
    own = pipe.scheduler
    if settings["scheduler"]:
        changes = dict(settings["changes"])
        if settings["scheduler"] == "pndm":
            changes.setdefault("skip_prk_steps", True)
        pipe.scheduler = SCHEDULERS[settings["scheduler"]].from_config(own.config, **changes)
    width, height = settings["size"]
    shape = (1, 4, height // 8, width // 8)
    count = noise[0].new_empty(shape).numel()
    stream = noise.flatten()
    used = [count]

    def recorded(wanted, **_):
        first, used[0] = used[0], used[0] + count
        return stream[first : first + count].reshape(wanted)

    ancestral.randn_tensor = consistency.randn_tensor = recorded
    # The pipeline of latent consistency models has none.
    negative = {"negative_prompt": settings["negative_prompt"]} if settings["negative_prompt"] else {}
    latents = pipe(
        prompt=PROMPT,
        **negative,
        width=width,
        height=height,
        num_inference_steps=settings["steps"],
        guidance_scale=settings["guidance"],
        latents=stream[:count].reshape(shape).clone(),
        output_type="latent",
    ).images
    pipe.scheduler = own
    picture = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    return latents, (picture / 2 + 0.5).clamp(0, 1)


def loops(name: str) -> list[dict]:
    base = {"negative_prompt": NEGATIVE, "size": [64, 64], "steps": 5, "guidance": 3.0, "changes": {}, "picture": True}
    if name == "sdxl_turbo":
        return [
            base | {"name": "own", "scheduler": None, "steps": 1, "guidance": 0.0, "negative_prompt": None},
            base | {"name": "two_steps", "scheduler": None, "steps": 2, "guidance": 0.0, "negative_prompt": None},
            base | {"name": "guided", "scheduler": None, "steps": 3},
        ]
    if name == "sd_tiny":
        return [base | {"name": "own", "scheduler": None}]
    if name == "sd_turbo":
        return [
            base | {"name": "own", "scheduler": None, "steps": 1, "guidance": 0.0, "negative_prompt": None},
            base | {"name": "two_steps", "scheduler": None, "steps": 2, "guidance": 0.0, "negative_prompt": None},
            base | {"name": "guided", "scheduler": None, "steps": 3},
            # As with the weights of a latent consistency model merged into a network without guidance as an input.
            base | {"name": "lcm", "scheduler": "lcm", "steps": 4, "guidance": 1.5},
        ]
    if name == "lcm":
        base |= {"scheduler": None, "negative_prompt": None, "steps": 4, "guidance": 8.5}
        variants = [{"picture": False, "scheduler": "lcm" if "changes" in new else None} | new for new in LCM_VARIANTS]
        return [base | {"name": "own"}] + [base | variant for variant in variants]
    own = [base | {"name": "own", "scheduler": None}]
    base["picture"] = False
    own += [base | {"name": scheduler, "scheduler": scheduler} for scheduler in SCHEDULERS if scheduler != "lcm"]
    own.append(base | {"name": "unguided", "scheduler": None, "steps": 2, "guidance": 1.0})
    own.append(base | {"name": "odd_size", "scheduler": None, "steps": 2, "size": [72, 104], "picture": True})
    own.append(base | {"name": "no_negative", "scheduler": None, "steps": 3, "negative_prompt": None})
    own.append(base | {"name": "long", "scheduler": "dpm++", "steps": 17})
    own.append(base | {"name": "single", "scheduler": "pndm", "steps": 1})
    if name == "sd21":
        own += [base | variant for variant in VARIANTS]
    return own


def components(pipe, name: str, noise: torch.Tensor) -> dict[str, torch.Tensor]:
    guided = name != "lcm"
    with torch.no_grad():
        encoded = pipe.encode_prompt(
            prompt=PROMPT,
            negative_prompt=NEGATIVE if guided else None,
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=guided,
        )
        hidden = torch.cat([encoded[1], encoded[0]]) if guided else encoded[0]
        latents = noise[:1] * 1.5
        added = None
        out = {"hidden": hidden}
        if "xl" in name:
            pooled = torch.cat([encoded[3], encoded[2]])
            sizes = torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]] * 2)
            added = {"text_embeds": pooled, "time_ids": sizes}
            out["pooled"] = pooled
        scale = None if guided else pipe.get_guidance_scale_embedding(torch.tensor([3.0 - 1]), 16)
        batch = latents.repeat(len(hidden), 1, 1, 1)
        prediction = pipe.unet(batch, 401, hidden, timestep_cond=scale, added_cond_kwargs=added).sample
        scale = pipe.vae.config.scaling_factor
        out |= {"latents": latents, "prediction": prediction, "colours": pipe.vae.decode(latents / scale).sample}
    return out


def check(name: str, out: dict[str, torch.Tensor]) -> None:
    """Nothing may be degenerate: every output varies, and depends on the prompt."""
    for key, value in out.items():
        print(f"{name:10} {key:24} {str(tuple(value.shape)):18} mean {value.mean():+.3f} std {value.std():.3f}")
        assert value.isfinite().all() and value.std() > 0.05, key
    for key in ["hidden", "prediction"] if name != "lcm" else []:
        assert (out[key][0] - out[key][1]).abs().max() > 0.1, key
    pictures = [value for key, value in out.items() if key.endswith(".picture")]
    for picture in pictures:
        inside = ((picture > 0) & (picture < 1)).float().mean()
        assert inside > 0.7, inside


def make(name: str, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    generator = torch.Generator().manual_seed(sum(name.encode()))
    torch.manual_seed(0)
    pipe, options = FAMILIES[name](folder, generator)
    modules = ["text_encoder", "text_encoder_2", "unet", "vae"]
    for module in filter(None, (getattr(pipe, part, None) for part in modules)):
        randomise(module, generator, 0.7 if isinstance(module, AutoencoderKL) else 1.2)
    for tiny in (pipe.vae, options.get("preview")):
        if isinstance(tiny, AutoencoderTiny):
            randomise(tiny, generator, 1.0)
            # Colours from 0 to 1, of which few are cut off.
            tiny.decoder.layers[-1].bias.data.fill_(0.5)
            tiny.decoder.layers[-1].weight.data.mul_(0.45)
    save(pipe, folder, options)
    for part in ["tokenizer", "tokenizer_2"]:
        # Saved again in the layout of the published repositories, without a tokenizer.json.
        if (folder / part).exists():
            pad = getattr(pipe, part).pad_token
            shutil.rmtree(folder / part)
            words_tokenizer(folder / part, pad)
    if pipe.unet.config.in_channels == 9:
        return
    pipe = type(pipe).from_pretrained(folder, variant="fp16" if options.get("half") else None, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn((NOISES, 4, 8, 8), generator=generator)
    out = components(pipe, name, noise)
    if tiny := options.get("preview"):
        with torch.no_grad():
            out["preview_colours"] = tiny.decode(out["latents"]).sample
    negative = NEGATIVE if name != "lcm" else ""
    expected = {"prompt": PROMPT, "negative_prompt": negative, "made_with": versions(), "loops": loops(name)}
    ids = {}
    for part in ["tokenizer", "tokenizer_2"]:
        if tokenizer := getattr(pipe, part, None):
            ids[part] = tokenizer(TEXTS, padding="max_length", max_length=LENGTH, truncation=True).input_ids
    expected |= {"texts": TEXTS, "ids": ids}
    with torch.no_grad():
        for loop in expected["loops"]:
            latents, picture = paint(pipe, noise, loop)
            out[f"{loop['name']}.latents"] = latents
            if loop["picture"]:
                out[f"{loop['name']}.picture"] = picture
    check(name, out)
    # Pictures as bytes: they are compared within a hundredth.
    stored = {key: (value * 255).round().to(torch.uint8) if key.endswith(".picture") else value for key, value in out.items()}
    stored = {key: value.detach().clone().contiguous() for key, value in stored.items()}
    save_file(stored | {"noise": noise}, folder / "expected.safetensors")
    (folder / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=True) + "\n")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{name}: {size / 1024:.0f} KiB")


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {package: version(package) for package in ["diffusers", "transformers", "torch"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("families", nargs="*", default=list(FAMILIES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    for name in args.families or FAMILIES:
        make(name, args.output / name)


if __name__ == "__main__":
    main()
