"""Makes tiny random models in the files of OpenCLIP and records what the reference makes of photographs and texts.

    python open_clip_models.py [FAMILY ...]
    python open_clip_models.py --published NAME FOLDER

The first writes tests/fixtures/image_embedding/{open_clip,open_clip_custom} and tests/fixtures/fast_vit. The second writes a
random model of a published configuration of open_clip (as MobileCLIP-S1), which is too large for the repository, with the
same files; `CANDLE_ACTORS_OPEN_CLIP=FOLDER cargo test --test transformers_encoders` compares with it.

Needs the PyPI packages of image_embedding.py, open_clip_torch and timm.
"""

import json
import sys
from pathlib import Path

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import save_file
from timm.models.fastvit import FastVit
from transformers import AutoTokenizer

import image_embedding as images

PACKAGES = images.PACKAGES + ["open_clip_torch", "timm"]


def randomise(model: torch.nn.Module, seed: int, weight: float = 1.0) -> None:
    """As images.randomise, and statistics of batch norms; `weight` is that of a block beside what goes around it."""
    images.randomise(model, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".gamma"):
                parameter.copy_(weight * (0.5 + 0.3 * torch.rand(parameter.shape, generator=generator)))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.copy_(0.7 + 0.4 * torch.rand(module.weight.shape, generator=generator))
                module.bias.copy_(0.1 * torch.randn(module.bias.shape, generator=generator))
                module.running_mean.copy_(0.1 * torch.randn(module.running_mean.shape, generator=generator))
                module.running_var.copy_(0.7 + 0.6 * torch.rand(module.running_var.shape, generator=generator))


def tokens(folder: Path, text: str, length: int) -> torch.Tensor:
    """As open_clip pads them: with zeros."""
    ids = AutoTokenizer.from_pretrained(folder)(text, truncation=True, max_length=length)["input_ids"]
    return torch.tensor([ids + [0] * (length - len(ids))])


def save(folder: Path, config: dict, model: torch.nn.Module, pickle: bool) -> None:
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if pickle:
        torch.save(state, folder / "open_clip_pytorch_model.bin")
    else:
        save_file(state, folder / "open_clip_model.safetensors")


def record(family: str, folder: Path, config: dict, pickle: bool = False, weight: float = 1.0) -> None:
    model_cfg, preprocess_cfg = config["model_cfg"], config["preprocess_cfg"]
    custom = model_cfg.get("custom_text", False)
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    settings = {key: value for key, value in model_cfg.items() if key != "custom_text"}
    model = kind(**settings).eval()
    randomise(model, 21, weight)
    save(folder, config, model, pickle)
    side = model_cfg["vision_cfg"]["image_size"]
    transform = image_transform_v2(PreprocessCfg(size=side, **preprocess_cfg), is_train=False)
    found_images, found_texts = [], []
    with torch.no_grad():
        for name in images.PHOTOGRAPHS:
            pixels = transform(images.photograph(name)).unsqueeze(0)
            found_images.append({"photograph": name, "features": images.digits(model.encode_image(pixels)[0])})
        for text in images.TEXTS:
            ids = tokens(folder, text, model_cfg["text_cfg"]["context_length"])
            features = images.digits(model.encode_text(ids)[0])
            found_texts.append({"text": text, "features": features})
    made_with = {name: images.version(name) for name in PACKAGES}
    document = {"family": family, "made_with": made_with, "images": found_images, "texts": found_texts}
    images.write(folder / "expected.json", document, ["images", "texts"])
    images.report(family, folder, found_images, found_texts)


def with_tokenizer(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    images.clip_tokenizer(folder)
    return len(AutoTokenizer.from_pretrained(folder))


def small(vocabulary: int, vision: dict, text: dict, **model) -> dict:
    vision = dict(image_size=32, layers=3, width=48, head_width=12, patch_size=8) | vision
    text = dict(context_length=16, vocab_size=vocabulary, width=32, heads=4, layers=2) | text
    return dict(embed_dim=24, vision_cfg=vision, text_cfg=text) | model


def plain() -> None:
    """As laion/CLIP-ViT-B-32-laion2B-s34B-b79K."""
    folder = images.OUT / "open_clip"
    model = small(with_tokenizer(folder), {}, {})
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    record("open_clip", folder, {"model_cfg": model, "preprocess_cfg": {"mean": list(mean), "std": list(std)}})


def custom() -> None:
    """With what may differ: the pickle, names of tensors of texts, no causal mask, another preprocessing."""
    folder = images.OUT / "open_clip_custom"
    model = small(
        with_tokenizer(folder), {"mlp_ratio": 2.6667, "patch_dropout": 0.5}, {"no_causal_mask": True, "mlp_ratio": 2.0},
        quick_gelu=True, custom_text=True)
    preprocess = dict(mean=[0.5] * 3, std=[0.4, 0.5, 0.6], interpolation="bilinear", resize_mode="squash")
    record("open_clip_custom", folder, {"model_cfg": model, "preprocess_cfg": preprocess}, pickle=True)


def fast_vit() -> None:
    """The network of MobileCLIP with 8 channels and one or two blocks a stage."""
    folder = images.FIXTURES / "fast_vit"
    folder.mkdir(parents=True, exist_ok=True)
    model = FastVit(
        layers=(1, 2, 1, 1), embed_dims=(8, 16, 32, 64), mlp_ratios=(3, 3, 3, 3), se_downsamples=(False, False, True, True),
        token_mixers=("repmixer", "repmixer", "repmixer", "attention"),
        pos_embs=(None, None, None, reference_positions()), lkc_use_act=True, num_classes=24, global_pool="avg").eval()
    randomise(model, 22)
    found = []
    with torch.no_grad():
        for name in images.PHOTOGRAPHS:
            transform = image_transform_v2(PreprocessCfg(size=64, mean=[0.5] * 3, std=[0.2] * 3), is_train=False)
            pixels = transform(images.photograph(name)).unsqueeze(0)
            found.append({"photograph": name, "features": images.digits(model(pixels)[0])})
    state = {f"visual.trunk.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    made_with = {name: images.version(name) for name in PACKAGES}
    images.write(folder / "expected.json", {"family": "fast_vit", "made_with": made_with, "images": found}, ["images"])
    images.report("fast_vit", folder, found, [])


def reference_positions():
    from functools import partial

    from timm.models.fastvit import RepConditionalPosEnc

    return partial(RepConditionalPosEnc, spatial_shape=(7, 7))


def published(name: str, folder: Path) -> None:
    """MobileCLIP takes pixels as they are, bilinear."""
    model = open_clip.get_model_config(name)
    folder.mkdir(parents=True, exist_ok=True)
    model["text_cfg"] |= {"vocab_size": with_tokenizer(folder), "context_length": 16}
    preprocess = dict(mean=[0.0] * 3, std=[1.0] * 3, interpolation="bilinear")
    record(name, folder, {"model_cfg": model, "preprocess_cfg": preprocess}, weight=0.1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    families = {"open_clip": plain, "open_clip_custom": custom, "fast_vit": fast_vit}
    if sys.argv[1:2] == ["--published"]:
        published(sys.argv[2], Path(sys.argv[3]))
    else:
        for family in sys.argv[1:] or families:
            families[family]()
