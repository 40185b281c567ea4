"""Trains a small vision model in LLaVA's layout to answer questions about pictures of drawn shapes (`../shapes`).

It sees through the vision tower of `../shapes-image-embedding`, of which it takes the layer before the last without the
class token (Liu et al. 2023); the tower is trained further here, together with the projector and the language model, which
starts from random numbers. Output: a complete folder in the layout of the published LLaVA models, weights as float16.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPVisionModel, GenerationConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

HERE = Path(__file__).parent
TOWER = HERE.parent / "shapes-image-embedding"
sys.path.insert(0, str(HERE.parent / "shapes"))
from speech import END, IMAGE, PAD, build_tokenizer, encode_turn, some_questions  # noqa: E402
from training import Timer, language_loss, padded, step  # noqa: E402
from world import Scene, description, draw, questions, scene_for  # noqa: E402

WIDTH = 128


def new_model(tokenizer, tower: CLIPVisionModel) -> LlavaForConditionalGeneration:
    end, pad, image = tokenizer.convert_tokens_to_ids([END, PAD, IMAGE])
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
    )
    # Where the tower was read from is nobody's business.
    tower.config._name_or_path = ""
    patches = (tower.config.image_size // tower.config.patch_size) ** 2
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=text,
        image_token_index=image,
        image_seq_length=patches,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    return model


def ask(scene: Scene, rng: random.Random) -> tuple[str, str]:
    if rng.random() < 0.35:
        return "Describe the picture.", description(scene)
    return rng.choice(questions(scene))


def turns_about(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    """What is asked and answered of one picture: the more, the more is learnt from looking at it (Liu et al. 2023)."""
    turns = [("Describe the picture.", description(scene)), *some_questions(scene, rng, 4)]
    rng.shuffle(turns)
    return turns


def lookups(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    """Only what has to be found by its shape."""
    turns = [turn for turn in questions(scene) if turn[0].startswith(("What colour", "Is the"))]
    rng.shuffle(turns)
    return turns


def tensor_of(pictures: list, mean: float, deviation: float) -> torch.Tensor:
    pixels = np.stack([np.asarray(picture, dtype=np.float32) for picture in pictures])
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / deviation


def batch_of(tokenizer, asked, rng: random.Random, size: int, patches: int) -> dict[str, torch.Tensor]:
    pictures, conversations = [], []
    while len(pictures) < size:
        scene = scene_for(rng, held_out=False)
        if not (turns := asked(scene, rng)):
            continue
        pictures.append(draw(scene, rng))
        (first, answer), *others = turns
        turns = [(IMAGE * patches + "\n" + first, answer), *others]
        conversations.append([encode_turn(tokenizer, *turn) for turn in turns])
    ids, labels = padded(conversations, tokenizer.pad_token_id)
    return {"input_ids": ids, "labels": labels, "pixel_values": tensor_of(pictures, 0.5, 0.5)}


@torch.no_grad()
def answers_right(model, tokenizer, rng: random.Random, count: int, patches: int) -> float:
    """How many questions about pictures of held-out scenes are answered word for word."""
    model.eval()
    right = 0
    for _ in range(count):
        scene = scene_for(rng, held_out=True)
        question, answer = ask(scene, rng)
        prompt, _ = encode_turn(tokenizer, IMAGE * patches + "\n" + question, answer)
        pixels = tensor_of([draw(scene, rng)], 0.5, 0.5)
        out = model.generate(input_ids=torch.tensor([prompt]), pixel_values=pixels, max_new_tokens=48, do_sample=False)
        right += tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True).strip() == answer
    model.train()
    return right / count


def train(model, tokenizer, asked, rng: random.Random, minutes: float, batch: int) -> None:
    """Trains on what `asked` asks of each picture."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, betas=(0.9, 0.98))
    timer = Timer(minutes, 1e-3)
    patches = model.config.image_seq_length
    while timer.spent() < 1:
        timer.advance(optimizer)
        tensors = batch_of(tokenizer, asked, rng, batch, patches)
        labels = tensors.pop("labels")
        loss = language_loss(model(**tensors).logits, labels)
        step(loss, optimizer)
        if timer.step % 200 == 1:
            right = answers_right(model, tokenizer, random.Random(2), 30, patches)
            timer.tell(f"loss {loss.item():.3f}, right {right:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--minutes", type=float, default=46)
    arguments = parser.parse_args()

    torch.manual_seed(1)
    rng = random.Random(1)
    tokenizer = build_tokenizer()
    model = new_model(tokenizer, CLIPVisionModel.from_pretrained(TOWER, torch_dtype=torch.float32))
    patches = model.config.image_seq_length
    print(f"{model.num_parameters()} parameters, {len(tokenizer)} tokens, {patches} patches")
    # As in `../shapes-chat/train.py`, a while of nothing but lookups shows the model how.
    for asked, minutes, batch in ((turns_about, 0.54, 32), (lookups, 0.17, 16), (turns_about, 0.29, 32)):
        train(model, tokenizer, asked, rng, minutes * arguments.minutes, batch)

    print(f"held out: {answers_right(model, tokenizer, random.Random(3), 300, patches):.3f} of 300 answers word for word")
    model.half().save_pretrained(arguments.out)
    GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id).save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    shared = json.loads((TOWER / "preprocessor_config.json").read_text())
    (arguments.out / "preprocessor_config.json").write_text(json.dumps(shared, indent=2) + "\n")
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": IMAGE,
        "patch_size": model.config.vision_config.patch_size,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    (arguments.out / "processor_config.json").write_text(json.dumps(processor, indent=2) + "\n")


if __name__ == "__main__":
    main()
