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
from speech import END, PAD, build_tokenizer, conversation, encode_turn, random_thing, story, story_request  # noqa: E402
from training import Timer, language_loss, padded, step  # noqa: E402
from world import scene_for  # noqa: E402

WIDTH = 128


def sample(tokenizer, rng: random.Random) -> tuple[list[int], list[int]]:
    """One conversation: the prompt's tokens and the answer's."""
    if rng.random() < 0.25:
        hero = random_thing(rng)
        return encode_turn(tokenizer, story_request(hero, rng), story(hero, random_thing(rng), rng))
    return encode_turn(tokenizer, *conversation(scene_for(rng, held_out=False), rng))


def batch_of(tokenizer, rng: random.Random, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels of conversations of about one length, which saves padding."""
    turns = sorted((sample(tokenizer, rng) for _ in range(size * 4)), key=lambda turn: sum(map(len, turn)))
    first = rng.randrange(4) * size
    return padded(turns[first : first + size], tokenizer.pad_token_id)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--batch", type=int, default=64)
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
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05, betas=(0.9, 0.98))
    timer = Timer(arguments.minutes, 2e-3)
    while timer.spent() < 1:
        timer.advance(optimizer)
        ids, labels = batch_of(tokenizer, rng, arguments.batch)
        loss = language_loss(model(input_ids=ids).logits, labels)
        step(loss, optimizer)
        if timer.step % 200 == 1:
            right = answers_right(model, tokenizer, random.Random(2), 30)
            timer.tell(f"loss {loss.item():.3f}, right {right:.2f}")

    print(f"held out: {answers_right(model, tokenizer, random.Random(3), 300):.3f} of 300 answers word for word")
    model.half().save_pretrained(arguments.out)
    GenerationConfig(eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id).save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
