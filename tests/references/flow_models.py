"""Writes tiny random Stable Diffusion 3.5 and FLUX.1 repositories and what diffusers makes of them.

Every repository has the layout of the published ones: CLIP tokenizers as vocab.json and merges.txt, the T5 tokenizer
as tokenizer.json, one safetensors file (or shards with an index) for each component. Beside it lies
expected.safetensors: the outputs of the text encoders, one prediction of the transformer, one decoded picture, and the
whole loop from recorded noise. Call:

    python flow_models.py FIXTURES_DIR [NAME ...]

With the name `levels` it writes flow_levels.json beside itself: noise levels of the schedules that spread them anew.

Needs the PyPI packages torch, transformers, diffusers, tokenizers and safetensors.
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

PROMPT = "A red circle left of a blue square, painted by a cat on a rainy evening"
NEGATIVE = "blurred, dark"
WIDTH, HEIGHT, STEPS = 24, 16, 4
SENTENCES = [
    "A red circle left of a blue square.",
    "Three small cats sleep on the warm windowsill in the evening.",
    "A photograph of an old train that leaves the station in heavy rain.",
    "An oil painting of a green hill, a river and a yellow house.",
    "Two dogs run along the beach; the sky is dark and the sea is blurred.",
    "The portrait of a woman who reads a letter, painted in soft light.",
    "A bowl of oranges, lemons and apples beside a white vase, high detail.",
    "Snow falls on the roofs of the town at night, seen from above.",
]


def clip_tokenizer(folder: Path) -> None:
    """Byte pairs learned from the sentences, as the two files that the published repositories have."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = {}
    for sentence in SENTENCES:
        for word in sentence.lower().replace(",", " ,").replace(".", " .").replace(";", " ;").split():
            pieces = tuple(word[:-1]) + (word[-1] + "</w>",)
            words[pieces] = words.get(pieces, 0) + 1
    merges = []
    while len(merges) < 90:
        pairs = {}
        for pieces, count in words.items():
            for pair in zip(pieces, pieces[1:]):
                pairs[pair] = pairs.get(pair, 0) + count
        best = max(sorted(pairs), key=pairs.get)
        merges.append(best)
        merged = {}
        for pieces, count in words.items():
            out, index = [], 0
            while index < len(pieces):
                if pieces[index : index + 2] == best:
                    out.append(best[0] + best[1])
                    index += 2
                else:
                    out.append(pieces[index])
                    index += 1
            merged[tuple(out)] = merged.get(tuple(out), 0) + count
        words = merged
    vocabulary = letters + [letter + "</w>" for letter in letters] + [a + b for a, b in merges]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({token: index for index, token in enumerate(vocabulary)}, ensure_ascii=False)
    (folder / "vocab.json").write_text(text, encoding="utf-8")
    lines = ["#version: 0.2"] + [f"{a} {b}" for a, b in merges]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def clip_settings(folder: Path, pad: str) -> None:
    special = lambda text: {
        "content": text, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False
    }
    settings = {
        "add_prefix_space": False,
        "bos_token": special("<|startoftext|>"),
        "do_lower_case": True,
        "eos_token": special("<|endoftext|>"),
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": pad,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": special("<|endoftext|>"),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": pad}
    names["unk_token"] = "<|endoftext|>"
    (folder / "special_tokens_map.json").write_text(json.dumps(names, indent=1))


def t5_tokenizer(folder: Path) -> None:
    """A unigram model learned from the sentences, as tokenizer.json."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=220, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "eos_token": "</s>", "extra_ids": 0, "model_max_length": 512, "pad_token": "<pad>",
        "tokenizer_class": "T5Tokenizer", "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def read_clip(folder: Path, pad: str) -> CLIPTokenizer:
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token=pad, model_max_length=77
    )


def read_t5(folder: Path) -> PreTrainedTokenizerFast:
    file = str(folder / "tokenizer.json")
    return PreTrainedTokenizerFast(
        tokenizer_file=file, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", model_max_length=512
    )


@torch.no_grad()
def randomize(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights that keep their input's size, and biases and norms that matter."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.named_parameters():
        noise = torch.randn(tensor.shape, generator=generator)
        if "norm" in name and tensor.dim() == 1 and name.endswith("weight"):
            tensor.copy_(1 + 0.3 * noise)
        elif tensor.dim() == 1:
            tensor.copy_(0.1 * noise)
        elif "embed_tokens" in name or "shared" in name or "embedding.weight" in name or "attention_bias" in name:
            tensor.copy_(0.7 * noise)
        else:
            tensor.copy_(noise * 1.0 / math.sqrt(tensor[0].numel()))
    return model.eval()


def clip_encoder(
    kind, seed: int, width: int, heads: int, vocabulary: int, projection: int, activation: str, old_end: bool
):
    config = CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3,
        num_attention_heads=heads, max_position_embeddings=77, projection_dim=projection,
        hidden_act=activation, bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1,
    )
    if old_end:
        # As in the published configurations, which are older than the setting: the end is the largest number then.
        config.bos_token_id, config.eos_token_id = 0, 2
    return randomize(kind(config), seed)


def t5_encoder(seed: int, width: int, vocabulary: int) -> T5EncoderModel:
    # 8 buckets up to 20, so that near, far and farthest all occur.
    config = T5Config(
        vocab_size=vocabulary, d_model=width, d_kv=6, d_ff=48, num_layers=2, num_heads=3,
        relative_attention_num_buckets=8, relative_attention_max_distance=20,
        feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False, tie_word_embeddings=False,
    )
    return randomize(T5EncoderModel(config), seed)


def autoencoder(seed: int, scaling: float, shift: float) -> AutoencoderKL:
    config = dict(
        in_channels=3, out_channels=3, latent_channels=16, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1, sample_size=32, scaling_factor=scaling, shift_factor=shift,
        use_quant_conv=False, use_post_quant_conv=False, force_upcast=True,
    )
    return randomize(AutoencoderKL(**config), seed)


def sd35(folder: Path) -> StableDiffusion3Pipeline:
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        clip_tokenizer(folder / name)
        clip_settings(folder / name, pad)
    t5_tokenizer(folder / "tokenizer_3")
    tokenizer = read_clip(folder / "tokenizer", "<|endoftext|>")
    tokenizer_2 = read_clip(folder / "tokenizer_2", "!")
    tokenizer_3 = read_t5(folder / "tokenizer_3")
    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, num_layers=3, attention_head_dim=8,
        num_attention_heads=3, joint_attention_dim=32, caption_projection_dim=24,
        pooled_projection_dim=20, out_channels=16, pos_embed_max_size=12, dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    kind = CLIPTextModelWithProjection
    return StableDiffusion3Pipeline(
        transformer=randomize(transformer, 1),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0),
        vae=autoencoder(2, 1.5305, 0.0609),
        text_encoder=clip_encoder(kind, 3, 12, 2, len(tokenizer), 12, "quick_gelu", False),
        tokenizer=tokenizer,
        text_encoder_2=clip_encoder(kind, 4, 16, 4, len(tokenizer_2), 8, "gelu", True),
        tokenizer_2=tokenizer_2,
        text_encoder_3=t5_encoder(5, 32, len(tokenizer_3)),
        tokenizer_3=tokenizer_3,
    )


def flux(folder: Path, guidance: bool) -> FluxPipeline:
    clip_tokenizer(folder / "tokenizer")
    clip_settings(folder / "tokenizer", "<|endoftext|>")
    t5_tokenizer(folder / "tokenizer_2")
    tokenizer = read_clip(folder / "tokenizer", "<|endoftext|>")
    tokenizer_2 = read_t5(folder / "tokenizer_2")
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=12,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=12, guidance_embeds=guidance,
        axes_dims_rope=(2, 4, 6),
    )
    seed = 20 if guidance else 10
    if guidance:
        scheduler = FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=1000, shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15,
            base_image_seq_len=256, max_image_seq_len=4096,
        )
    else:
        scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
    return FluxPipeline(
        transformer=randomize(transformer, seed + 1),
        scheduler=scheduler,
        vae=autoencoder(seed + 2, 0.3611, 0.1159),
        text_encoder=clip_encoder(CLIPTextModel, seed + 3, 12, 2, len(tokenizer), 12, "quick_gelu", True),
        tokenizer=tokenizer,
        text_encoder_2=t5_encoder(seed + 5, 32, len(tokenizer_2)),
        tokenizer_2=tokenizer_2,
    )


def save(pipeline, folder: Path, half: dict[str, torch.dtype], sharded: list[str]) -> None:
    """Saves all but the tokenizers, which are there already, and reads what was rounded back into the pipeline."""
    classes = {"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer", "tokenizer_3": "T5TokenizerFast"}
    if isinstance(pipeline, FluxPipeline):
        classes["tokenizer_2"] = "T5TokenizerFast"
    index = {"_class_name": type(pipeline).__name__, "_diffusers_version": "0.30.0"}
    for name, component in sorted(pipeline.components.items()):
        if component is None:
            continue
        if name.startswith("tokenizer"):
            index[name] = ["transformers", classes[name]]
            continue
        library = "transformers" if name.startswith("text_encoder") else "diffusers"
        index[name] = [library, type(component).__name__]
        if name in half:
            component.to(half[name])
        size = "100KB" if name in sharded else "5GB"
        options = {} if name == "scheduler" else {"max_shard_size": size}
        component.save_pretrained(folder / name, **options)
        if name in half:
            component.to(torch.float32)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


class Recorder:
    """Keeps the tensors that the Rust tests compare with."""

    def __init__(self) -> None:
        self.tensors = {}

    def keep(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        self.tensors[name] = tensor.detach().to(torch.float32).contiguous().clone()
        spread = self.tensors[name].std().item()
        print(f"  {name} {tuple(tensor.shape)}: std {spread:.3f}, largest {tensor.abs().max():.3f}")
        assert spread > 0.05, f"{name} is degenerate"
        return tensor


def spread_over_tokens(hidden: torch.Tensor) -> torch.Tensor:
    """The first and last rows of a long text: what is in between is padding."""
    return torch.cat([hidden[:, :40], hidden[:, -8:]], dim=1)


@torch.no_grad()
def record(pipeline, folder: Path, length: int, guidance: float) -> None:
    recorder = Recorder()
    is_flux = isinstance(pipeline, FluxPipeline)
    generator = torch.Generator().manual_seed(99)
    scale = pipeline.vae_scale_factor
    shape = (1, 16, HEIGHT // scale, WIDTH // scale)
    noise = recorder.keep("noise", torch.randn(shape, generator=generator))
    latents = recorder.keep("latents", torch.randn(shape, generator=generator))
    moment = 700.5

    if is_flux:
        hidden, pooled, text_ids = pipeline.encode_prompt(PROMPT, max_sequence_length=length)
        packed = pipeline._pack_latents(latents, 1, 16, *shape[2:])
        image_ids = pipeline._prepare_latent_image_ids(1, shape[2] // 2, shape[3] // 2, "cpu", torch.float32)
        embedded = torch.tensor([guidance]) if pipeline.transformer.config.guidance_embeds else None
        predicted = pipeline.transformer(
            hidden_states=packed, timestep=torch.tensor([moment / 1000]), guidance=embedded,
            pooled_projections=pooled, encoder_hidden_states=hidden, txt_ids=text_ids, img_ids=image_ids,
        ).sample
        predicted = pipeline._unpack_latents(predicted, HEIGHT, WIDTH, scale)
    else:
        hidden, without, pooled, pooled_without = pipeline.encode_prompt(
            PROMPT, None, None, negative_prompt=NEGATIVE, max_sequence_length=length
        )
        hidden, pooled = torch.cat([without, hidden]), torch.cat([pooled_without, pooled])
        predicted = pipeline.transformer(
            hidden_states=torch.cat([latents] * 2), timestep=torch.tensor([moment, moment]),
            encoder_hidden_states=hidden, pooled_projections=pooled,
        ).sample
    recorder.keep("pooled", pooled)
    if is_flux:
        recorder.keep("hidden", spread_over_tokens(hidden))
    else:
        recorder.keep("clip_hidden", hidden[:, :77])
        recorder.keep("hidden", spread_over_tokens(hidden[:, 77:]))
    recorder.keep("predicted", predicted)
    if is_flux and pipeline.transformer.config.guidance_embeds:
        other = pipeline.transformer(
            hidden_states=packed, timestep=torch.tensor([moment / 1000]), guidance=torch.tensor([1.0]),
            pooled_projections=pooled, encoder_hidden_states=hidden, txt_ids=text_ids, img_ids=image_ids,
        ).sample
        change = (pipeline._unpack_latents(other, HEIGHT, WIDTH, scale) - predicted).abs().max()
        print(f"  guidance changes the prediction by {change:.3f}")

    vae = pipeline.vae
    decoded = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample
    recorder.keep("decoded", decoded)

    start = pipeline._pack_latents(noise, 1, 16, *shape[2:]) if is_flux else noise
    options = dict(
        prompt=PROMPT, width=WIDTH, height=HEIGHT, num_inference_steps=STEPS, guidance_scale=guidance,
        max_sequence_length=length,
    )
    if not is_flux:
        options["negative_prompt"] = NEGATIVE
    final = pipeline(latents=start.clone(), output_type="latent", **options).images
    picture = pipeline(latents=start.clone(), output_type="pt", **options).images
    if is_flux:
        final = pipeline._unpack_latents(final, HEIGHT, WIDTH, scale)
    recorder.keep("final_latents", final)
    recorder.keep("picture", picture)
    recorder.tensors["sigmas"] = pipeline.scheduler.sigmas.to(torch.float32).clone()
    recorder.tensors["timesteps"] = pipeline.scheduler.timesteps.to(torch.float32).clone()
    save_file(recorder.tensors, folder / "expected.safetensors")
    case = dict(
        prompt=PROMPT, negative_prompt=None if is_flux else NEGATIVE, width=WIDTH, height=HEIGHT, steps=STEPS,
        guidance=guidance, moment=moment, tokens=length,
    )
    (folder / "case.json").write_text(json.dumps(case, indent=1) + "\n")


def levels() -> None:
    cases = []
    for spread in ["karras", "exponential", "beta"]:
        for base, steps in [
            ({"shift": 3.0}, 1), ({"shift": 3.0}, 7), ({"shift_terminal": 0.1}, 5),
            ({"use_dynamic_shifting": True}, 28),
        ]:
            config = base | {f"use_{spread}_sigmas": True}
            scheduler = FlowMatchEulerDiscreteScheduler(**config)
            scheduler.set_timesteps(steps, mu=1.15)
            cases.append({"config": config, "steps": steps, "sigmas": scheduler.sigmas[:-1].tolist()})
    lines = ",\n".join(json.dumps(case) for case in cases)
    (Path(__file__).parent / "flow_levels.json").write_text(f"[\n{lines}\n]\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fixtures", type=Path)
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    half = lambda *names: dict.fromkeys(names, torch.float16)
    short = lambda *names: dict.fromkeys(names, torch.bfloat16)
    kinds = {
        "sd35": (sd35, 256, 4.5, half("vae", "text_encoder_3"), ["transformer"]),
        "flux_schnell": (lambda folder: flux(folder, False), 256, 0.0, {}, []),
        "flux_dev": (lambda folder: flux(folder, True), 512, 3.5, short("transformer", "text_encoder_2"), []),
    }
    if not args.names or "levels" in args.names:
        levels()
    for name, (make, length, guidance, half, sharded) in kinds.items():
        if args.names and name not in args.names:
            continue
        print(name)
        folder = args.fixtures / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        pipeline = make(folder)
        pipeline.set_progress_bar_config(disable=True)
        save(pipeline, folder, half, sharded)
        record(pipeline, folder, length, guidance)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        print(f"  {size} bytes")


if __name__ == "__main__":
    main()
