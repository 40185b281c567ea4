"""Trains a small chat model in Llama's layout to answer questions about scenes given in words and to tell short stories
about shapes (`../shapes/speech.py`).

Only the answers are trained on. Questions about held-out scenes (`../shapes/world.py`) are kept for measuring. Output: a
complete folder in the layout of the published Llama models, weights as float16.
"""

import argparse
import random
import sys
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "shapes"))
from speech import (  # noqa: E402
    END,
    PAD,
    build_tokenizer,
    conversation,
    encode_turn,
    random_thing,
    scene_in_words,
    some_questions,
    story,
    story_request,
)
from training import Conversation, Timer, language_loss, length, padded, step  # noqa: E402
from world import Scene, questions, scene_for  # noqa: E402

WIDTH = 128


def sample(tokenizer, rng: random.Random) -> Conversation:
    """A story, or some questions about one scene: the more are asked, the more is learnt from reading it."""
    if rng.random() < 0.2:
        hero = random_thing(rng)
        turns = [(story_request(hero, rng), story(hero, random_thing(rng), rng))]
    else:
        scene = scene_for(rng, held_out=False)
        turns = about(scene, some_questions(scene, rng, 6), rng)
    return [encode_turn(tokenizer, *turn) for turn in turns]


def lookups(tokenizer, rng: random.Random) -> Conversation:
    """Questions about colours and sizes: what stands before a word has to be found. In between anything else, so that it
    is not unlearnt."""
    while rng.random() < 0.7:
        scene = scene_for(rng, held_out=False)
        asked = [turn for turn in questions(scene) if turn[0].startswith(("What colour", "Is the"))]
        if len(asked) > 2:
            rng.shuffle(asked)
            return [encode_turn(tokenizer, *turn) for turn in about(scene, asked, rng)]
    return sample(tokenizer, rng)


def about(scene: Scene, asked: list[tuple[str, str]], rng: random.Random) -> list[tuple[str, str]]:
    """The turns of a conversation that begins with the scene in words."""
    (first, answer), *others = asked
    return [(f"{scene_in_words(scene, rng)} {first}", answer), *others]


def batch_of(conversations: list[Conversation], rng: random.Random, size: int, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels of a part of them that are of about one length, which saves padding."""
    first = rng.randrange(len(conversations) // size) * size
    return padded(sorted(conversations, key=length)[first : first + size], pad)


@torch.no_grad()
def answers_right(model, tokenizer, rng: random.Random, count: int) -> float:
    """How many questions about held-out scenes are answered word for word."""
    model.eval()
    right = 0
    for _ in range(count):
        prompt, _ = encode_turn(tokenizer, *(turn := conversation(scene_for(rng, held_out=True), rng)))
        out = model.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)
        right += tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True).strip() == turn[1]
    model.train()
    return right / count


def train(model, tokenizer, stage, rng: random.Random, minutes: float, batch: int) -> None:
    """Trains on conversations of one kind."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, betas=(0.9, 0.98))
    timer = Timer(minutes, 1e-3)
    while timer.spent() < 1:
        timer.advance(optimizer)
        conversations = [stage(tokenizer, rng) for _ in range(4 * batch)]
        ids, labels = batch_of(conversations, rng, batch, tokenizer.pad_token_id)
        loss = language_loss(model(input_ids=ids).logits, labels)
        step(loss, optimizer)
        if timer.step % 200 == 1:
            right = answers_right(model, tokenizer, random.Random(2), 30)
            timer.tell(f"loss {loss.item():.3f}, right {right:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--minutes", type=float, default=42)
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()

    torch.manual_seed(1)
    rng = random.Random(1)
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=336,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
    )
    model = LlamaForCausalLM(config)
    print(f"{model.num_parameters()} parameters, {len(tokenizer)} tokens")
    # Left to itself, the model answers by what it has seen often for very long before it finds out how to look up a colour;
    # a while of mostly that, and it has.
    for stage, minutes in ((sample, 0.35), (lookups, 0.35), (sample, 0.3)):
        train(model, tokenizer, stage, rng, minutes * arguments.minutes, arguments.batch)

    print(f"held out: {answers_right(model, tokenizer, random.Random(3), 300):.3f} of 300 answers word for word")
    model.half().save_pretrained(arguments.out)
    GenerationConfig(eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id).save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
