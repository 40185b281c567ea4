"""Makes tiny random models of each image embedding family and records what the reference makes of photographs and texts.

The models are saved as the published repositories are laid out, under tests/fixtures/image_embedding/<family>/, with the
vectors of transformers in expected.json beside them. What the processors make of the photographs goes to
tests/fixtures/image_embedding/pixels.json: those that are backed by Pillow, which is how the published models' images were
prepared; the largest difference of those backed by torchvision is printed.

    python image_embedding.py [FAMILY ...]

Without the names of families it makes all of them, and the pixels. Needs the PyPI packages torch, torchvision, transformers, tokenizers, safetensors and pillow.
"""

import argparse
import json
import math
import shutil
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    AutoTokenizer,
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTImageProcessor,
    DINOv3ViTModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    ViTImageProcessorPil,
)

HERE = Path(__file__).parent
FIXTURES = HERE.parent / "fixtures"
OUT = FIXTURES / "image_embedding"
PHOTOGRAPHS = ["cat.png", "coffee.png", "face.png", "eye.png", "sky.png", "stamp.png"]
TEXTS = [
    "a photo of a cat",
    "A cup of coffee on a wooden table, seen from above.",
    "the portrait of an astronaut in an orange suit",
    "stars",
    "",
    "Zoë's café: naïve façades & 3.14 — 東京!",
    "a very long text that goes on and on until there is no room left for any of it " * 3,
    "ROCKET   launch\tat night",
]
PACKAGES = ["transformers", "tokenizers", "torch", "torchvision", "pillow", "numpy"]


def photograph(name: str) -> Image.Image:
    return Image.open(FIXTURES / "photographs" / name).convert("RGB")


def corpus() -> list[str]:
    cases = json.loads((HERE / "english_small.json").read_text())["cases"]
    ordinary = [case["text"] for case in cases if case["text"].isascii() and len(case["text"]) < 400]
    return TEXTS[:4] * 20 + ordinary


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Numbers large enough that every part of the computation shows in the result."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif "layer_scale" in name or "lambda" in name:
                parameter.copy_(0.6 + 0.3 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            elif parameter.ndim < 2 or "embedding" in name or "token" in name or "probe" in name:
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(noise * 1.4 / parameter[0].numel() ** 0.5)


def clip_tokenizer(folder: Path) -> None:
    """Byte-level BPE as CLIP's, whose two special tokens are the last of the vocabulary."""
    shell = CLIPTokenizer()
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = shell.backend_tokenizer.normalizer
    trained.pre_tokenizer = shell.backend_tokenizer.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    trained.train_from_iterator(corpus(), trainer)
    state = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in state["merges"]]
    words = alphabet + [letter + "</w>" for letter in alphabet]
    words += [word for word in ("".join(merge) for merge in merges) if word not in words]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=16).save_pretrained(folder)


def siglip_tokenizer(folder: Path) -> None:
    """Unigram as SigLIP's: lower case, no punctuation, padded to one length with the token that ends a text."""
    punctuation = Regex(r"""[!"\#\$%\&'\(\)\*\+,\-\./:;<=>\?@\[\\\]\^_`\{\|\}\~]""")
    normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(punctuation, ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    # The library's trainer does not give the same twice, so the pieces are the most frequent runs of letters.
    pieces = Counter()
    for line in corpus():
        for word in ("\u2581" + word for word in normalizer.normalize_str(line).split(" ")):
            ends = range(1, 6)
            pieces.update(word[at : at + length] for at in range(len(word)) for length in ends if at + length <= len(word))
    letters = {piece: count for piece, count in pieces.items() if len(piece) == 1}
    runs = sorted((piece for piece in pieces if len(piece) > 1), key=lambda piece: (-pieces[piece] * len(piece), piece))
    chosen = sorted(letters) + runs[: 297 - len(letters)]
    total = sum(pieces[piece] for piece in chosen)
    scored = [(piece, round(math.log(pieces[piece] / total), 4)) for piece in chosen]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)] + scored
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        pad_token="</s>",
        unk_token="<unk>",
        model_max_length=16,
        model_input_names=["input_ids"],
    ).save_pretrained(folder)


def gemma_tokenizer(folder: Path) -> None:
    """BPE with bytes for unknown letters as Gemma's, which SigLIP 2 pads to one length. It tells cases apart."""
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    # By Gemma's rule a text is one word; for training it is cut before each space.
    trained.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=240, show_progress=False)
    trained.train_from_iterator(corpus(), trainer)
    state = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in state["merges"]]
    pieces = names + [f"<0x{byte:02X}>" for byte in range(256)] + list(state["vocab"])
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = trained.normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(names)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    special = dict(pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>", mask_token="<mask>")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **special,
        add_bos_token=False,
        add_eos_token=True,
        model_input_names=["input_ids"],
        model_max_length=16,
        padding_side="right",
    ).save_pretrained(folder)
    # The class that the published files name.
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_class": "GemmaTokenizer"}
    path.write_text(json.dumps(config, indent=2) + "\n")


def clip_config(vocabulary: int, **changes) -> CLIPConfig:
    vision = dict(
        hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8
    )
    text = dict(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        vocab_size=vocabulary,
        eos_token_id=vocabulary - 1,
        bos_token_id=vocabulary - 2,
        pad_token_id=vocabulary - 1,
    )
    vision.update(changes.get("vision", {}))
    text.update(changes.get("text", {}))
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)


def siglip_config(vocabulary: int, kind=SiglipConfig, **size) -> SiglipConfig:
    vision = dict(hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, patch_size=7)
    vision |= size or {"image_size": 30}
    text = dict(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        vocab_size=vocabulary,
        projection_size=48,
    )
    return kind(text_config=text, vision_config=vision)


def dinov3_settings(**changes) -> dict:
    settings = dict(
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=42,
        patch_size=7,
        num_register_tokens=4,
    )
    return settings | changes


def dinov2_settings(**changes) -> dict:
    settings = dict(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, mlp_ratio=2, image_size=42, patch_size=7
    )
    return settings | changes


def save(model, folder: Path, numbers: torch.dtype, shards: str | None) -> torch.nn.Module:
    """Saves and loads again, so that the reference computes with the rounded weights, in f32."""
    size = {"max_shard_size": shards} if shards else {}
    model.to(numbers).save_pretrained(folder, **size)
    # The automatic class has a vision tower without its projection.
    kind = type(model) if "WithProjection" in type(model).__name__ else AutoModel
    return kind.from_pretrained(folder, dtype=torch.float32).eval()


def digits(values) -> list[float]:
    """Seven significant digits: a little more than an f32 holds reliably."""
    return [float(f"{value:.7g}") for value in np.asarray(values, dtype=np.float64).ravel()]


def vectors(model, inputs: dict, side: str) -> list[float]:
    with torch.no_grad():
        if hasattr(model, f"get_{side}_features"):
            output = getattr(model, f"get_{side}_features")(**inputs)
        else:
            output = model(**inputs)
    projected = getattr(output, f"{side}_embeds", None)
    return digits((output.pooler_output if projected is None else projected)[0])


def write(path: Path, document: dict, lists: list[str]) -> None:
    """One line for each entry of the lists."""
    parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in document.items() if key not in lists]
    for key in lists:
        lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in document[key])
        parts.append(f"{json.dumps(key)}: [\n{lines}\n]")
    path.write_text("{" + ",\n".join(parts) + "}\n", encoding="ascii")


def record(family: str, model, processor, padding, numbers=torch.float32, shards=None) -> None:
    folder = OUT / family
    model = save(model, folder, numbers, shards)
    images, texts = [], []
    if processor is not None:
        processor.save_pretrained(folder)
    for name in PHOTOGRAPHS if processor is not None else []:
        inputs = processor(photograph(name), return_tensors="pt")
        images.append({"photograph": name, "features": vectors(model, dict(inputs), "image")})
    if padding is not None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for text in TEXTS:
            inputs = tokenizer([text], padding=padding, truncation=True, return_tensors="pt")
            features = vectors(model, dict(inputs), "text")
            texts.append({"text": text, "tokens": inputs["input_ids"][0].tolist(), "features": features})
    made_with = {name: version(name) for name in PACKAGES}
    document = {"family": family, "made_with": made_with, "images": images, "texts": texts}
    write(folder / "expected.json", document, ["images", "texts"])
    report(family, folder, images, texts)


def report(family: str, folder: Path, images: list[dict], texts: list[dict]) -> None:
    """Vectors of different inputs must differ clearly, or the comparison shows nothing."""
    bytes_ = sum(path.stat().st_size for path in folder.iterdir())
    line = f"{family}: {bytes_ // 1024} KiB"
    for kind, cases in (("images", images), ("texts", texts)):
        if cases:
            rows = np.array([case["features"] for case in cases])
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            cosines = (rows @ rows.T)[np.triu_indices(len(rows), 1)]
            line += f", {len(cases)} {kind}, cosines {cosines.min():.2f} to {cosines.max():.2f}"
    print(line)


def age(folder: Path, side: int) -> None:
    """Writes two files as repositories from the first years have them; they mean the same."""
    path = folder / "preprocessor_config.json"
    config = json.loads(path.read_text())
    kept = {key: config[key] for key in ("do_center_crop", "do_normalize", "do_resize", "image_mean", "image_std")}
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": side, "crop_size": side, "resample": 3}
    path.write_text(json.dumps(kept | old, indent=2) + "\n")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for name in ("text_config", "vision_config"):
        config[f"{name}_dict"] = config[name]
        config[name] = {"model_type": config[name]["model_type"]}
    path.write_text(json.dumps(config, indent=2) + "\n")


def clip_processor(side: int) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def clip() -> None:
    for family, changes, numbers, shards in [
        ("clip", {}, torch.float32, None),
        (
            "clip_legacy",
            {"vision": {"hidden_act": "gelu", "image_size": 30, "patch_size": 7}, "text": {"hidden_act": "gelu"}},
            torch.float16,
            "60KB",
        ),
    ]:
        folder = OUT / family
        folder.mkdir(parents=True, exist_ok=True)
        clip_tokenizer(folder)
        config = clip_config(len(AutoTokenizer.from_pretrained(folder)), **changes)
        if family == "clip_legacy":
            # What configurations from before the correction say; the end is then the largest number.
            config.text_config.eos_token_id = 2
        model = CLIPModel(config)
        randomise(model, 1)
        side = config.vision_config.image_size
        record(family, model, clip_processor(side), padding=True, numbers=numbers, shards=shards)
        if family == "clip_legacy":
            age(folder, side)


def clip_vision() -> None:
    settings = clip_config(420).vision_config.to_dict() | {"projection_dim": 24, "hidden_act": "gelu"}
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**settings))
    randomise(model, 6)
    record("clip_vision", model, clip_processor(32), padding=None, numbers=torch.float16)


def clip_text() -> None:
    folder = OUT / "clip_text"
    folder.mkdir(parents=True, exist_ok=True)
    clip_tokenizer(folder)
    settings = clip_config(len(AutoTokenizer.from_pretrained(folder))).text_config.to_dict()
    model = CLIPTextModelWithProjection(CLIPTextConfig(**settings | {"projection_dim": 24}))
    randomise(model, 7)
    record("clip_text", model, None, padding=True)


def siglip() -> None:
    folder = OUT / "siglip"
    folder.mkdir(parents=True, exist_ok=True)
    siglip_tokenizer(folder)
    model = SiglipModel(siglip_config(len(AutoTokenizer.from_pretrained(folder))))
    randomise(model, 2)
    record("siglip", model, SiglipImageProcessorPil(size={"height": 30, "width": 30}), padding="max_length")


def siglip2() -> None:
    """SigLIP 2 with images of one size: SigLIP with the tokenizer of Gemma."""
    folder = OUT / "siglip2"
    folder.mkdir(parents=True, exist_ok=True)
    gemma_tokenizer(folder)
    model = SiglipModel(siglip_config(len(AutoTokenizer.from_pretrained(folder))))
    randomise(model, 8)
    processor = SiglipImageProcessorPil(size={"height": 30, "width": 30}, resample=2)
    record("siglip2", model, processor, padding="max_length", numbers=torch.float16)


def siglip2_naflex() -> None:
    folder = OUT / "siglip2_naflex"
    folder.mkdir(parents=True, exist_ok=True)
    gemma_tokenizer(folder)
    vocabulary = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    model = Siglip2Model(siglip_config(vocabulary, Siglip2Config, num_patches=25))
    randomise(model, 9)
    processor = Siglip2ImageProcessorPil(patch_size=7, max_num_patches=20)
    record("siglip2_naflex", model, processor, padding="max_length", numbers=torch.bfloat16)


def dinov2() -> None:
    # Images are smaller than those that the positions are for, as with the published models.
    crop = dict(size={"shortest_edge": 40}, crop_size={"height": 35, "width": 35})
    model = Dinov2Model(Dinov2Config(**dinov2_settings()))
    randomise(model, 3)
    record("dinov2", model, BitImageProcessorPil(**crop), padding=None)
    model = Dinov2Model(Dinov2Config(**dinov2_settings(use_swiglu_ffn=True)))
    randomise(model, 4)
    # Without a crop every image has sides of its own.
    whole = BitImageProcessorPil(size={"shortest_edge": 29}, do_center_crop=False)
    record("dinov2_giant", model, whole, padding=None, numbers=torch.bfloat16)
    settings = dinov2_settings(num_register_tokens=3, qkv_bias=False)
    model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**settings))
    randomise(model, 5)
    record("dinov2_with_registers", model, BitImageProcessorPil(**crop), padding=None)


def dinov3() -> None:
    model = DINOv3ViTModel(DINOv3ViTConfig(**dinov3_settings()))
    randomise(model, 10)
    # Its images are resized as numbers, by the processor that transformers has alone for it.
    record("dinov3", model, DINOv3ViTImageProcessor(size={"height": 35, "width": 49}), padding=None)
    settings = dinov3_settings(use_gated_mlp=True, hidden_act="silu", num_register_tokens=0, key_bias=True)
    model = DINOv3ViTModel(DINOv3ViTConfig(**settings))
    randomise(model, 11)
    # Each image has sides of its own.
    whole = DINOv3ViTImageProcessor(size={"shortest_edge": 29})
    record("dinov3_gated", model, whole, padding=None, numbers=torch.bfloat16)


IMAGENET = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
# Those of openai/clip-vit-base-patch32, llava's 336, google/siglip-base-patch16-224, so400m's 384, facebook/dinov2-base,
# google/vit-base-patch16-224, and sizes that make much larger, much smaller, or both.
PUBLISHED = [
    ("clip_224", CLIPImageProcessorPil, {}),
    ("clip_336", CLIPImageProcessorPil, dict(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})),
    ("siglip_224", SiglipImageProcessorPil, {}),
    ("siglip_384", SiglipImageProcessorPil, dict(size={"height": 384, "width": 384})),
    ("dinov2", BitImageProcessorPil, dict(size={"shortest_edge": 256}, **IMAGENET)),
    ("vit", ViTImageProcessorPil, {}),
    ("small_crop", CLIPImageProcessorPil, dict(size={"shortest_edge": 17}, crop_size={"height": 31, "width": 13})),
    ("uncropped", BitImageProcessorPil, dict(size={"shortest_edge": 37}, do_center_crop=False)),
]
# Coprime to every side, so that all channels, rows and columns come up.
STRIDE = 401


def pixel_cases() -> list[dict]:
    cases = []
    for name, kind, settings in PUBLISHED:
        processor = kind(**settings)
        config = {key: value for key, value in processor.to_dict().items() if value is not None}
        for photo in PHOTOGRAPHS + ["rocket.webp"]:
            values = np.asarray(processor(photograph(photo), return_tensors="np")["pixel_values"][0])
            cases.append(
                {
                    "name": name,
                    "config": config,
                    "photograph": photo,
                    "height": values.shape[1],
                    "width": values.shape[2],
                    "sum": float(values.astype(np.float64).sum()),
                    "stride": STRIDE,
                    "values": digits(values.ravel()[::STRIDE]),
                }
            )
    return cases


def rolling(values: np.ndarray) -> int:
    """A number that changes with any byte or its place."""
    total = 0
    for byte in values.astype(np.uint8).ravel().tolist():
        total = (total * 31 + byte) % 2**32
    return total


def resize_cases() -> list[dict]:
    """Every filter of Pillow, to sides that are larger, smaller, both, and the same."""
    cases = []
    for number in range(6):
        for photo, (width, height) in [
            ("cat.png", (97, 53)),
            ("cat.png", (191, 40)),
            ("face.png", (211, 61)),
            ("stamp.png", (83, 131)),
            ("sky.png", (7, 90)),
            ("coffee.png", (186, 120)),
            ("coffee.png", (186, 121)),
        ]:
            resized = np.asarray(photograph(photo).resize((width, height), resample=number))
            planes = np.moveaxis(resized, -1, 0)
            cases.append(
                {"filter": number, "photograph": photo, "width": width, "height": height, "hash": rolling(planes)}
            )
    return cases


def torchvision_difference() -> None:
    """How far the processors on torchvision are from those on Pillow, in steps of 1/255 before normalisation."""
    from transformers import BitImageProcessor, CLIPImageProcessor, SiglipImageProcessor, ViTImageProcessor

    twins = {
        CLIPImageProcessorPil: CLIPImageProcessor,
        SiglipImageProcessorPil: SiglipImageProcessor,
        BitImageProcessorPil: BitImageProcessor,
        ViTImageProcessorPil: ViTImageProcessor,
    }
    for name, kind, settings in PUBLISHED:
        worst = 0.0
        for photo in PHOTOGRAPHS:
            plain = dict(settings, do_normalize=False)
            ours = kind(**plain)(photograph(photo), return_tensors="np")["pixel_values"][0]
            theirs = twins[kind](**plain)(photograph(photo), return_tensors="pt")["pixel_values"][0].numpy()
            if ours.shape == theirs.shape:
                worst = max(worst, float(np.abs(ours - theirs).max()) * 255)
            else:
                print(f"{name} {photo}: {ours.shape} against {theirs.shape}")
        print(f"{name}: torchvision is up to {worst:.2f}/255 from Pillow")


FAMILIES = [clip, clip_vision, clip_text, siglip, siglip2, siglip2_naflex, dinov2, dinov3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", choices=[family.__name__ for family in FAMILIES] + [[]])
    chosen = parser.parse_args().families
    torch.set_num_threads(1)
    if not chosen:
        shutil.rmtree(OUT, ignore_errors=True)
    for family in FAMILIES:
        if not chosen or family.__name__ in chosen:
            family()
    if not chosen:
        pixels()


def pixels() -> None:
    made_with = {name: version(name) for name in PACKAGES}
    document = {"made_with": made_with, "cases": pixel_cases(), "resizes": resize_cases()}
    write(OUT / "pixels.json", document, ["cases", "resizes"])
    print(f"pixels: {(OUT / 'pixels.json').stat().st_size // 1024} KiB")
    torchvision_difference()


if __name__ == "__main__":
    main()
