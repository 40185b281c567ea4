"""Writes the tiny models of tests/fixtures/transformers, which candle-transformers computes, with transformers' results.

Each folder is laid out like a published repository: the configuration has the published keys, the weights have the
published names. Beside them lies what decoders.py writes for its families: `expected.json` with four prompts and 64 greedy
tokens each, `expected.safetensors` with logits. `continued` in `expected.json` is a second turn: the last prompt, its
greedy tokens, more tokens of a user, and the 64 greedy tokens after them. Call:

    python long_tail.py [FAMILY ...]

Needs the PyPI packages torch, transformers, tokenizers and safetensors.
"""

import json
import math
import shutil
import string
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import decoders
from long_tail_configs import FAMILIES

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "transformers"
decoders.GAP = 1e-2
# What the user says in the second turn: the first that leaves no doubt.
SECONDS = [" How do I reset it? You are a helpful assistant.", " I don't know.", " What is the capital of France?", " The rain."]
# Standard deviations of a family's weights: embedding, head, and matrices by the square root of their inputs.
USUAL = (0.7, 0.8, 1.4)
TIED = (0.35, 0.0, 2.0)
SCALES = {"granite": (0.25, 0.0, 2.5), "granitemoehybrid": (0.25, 0.0, 2.5)} | dict.fromkeys(
    ["olmo", "lfm2", "starcoder2", "falcon", "mamba", "mamba2", "gpt_bigcode", "recurrent_gemma"], TIED)


def kind_of(name):
    """Which of the scales a tensor has."""
    if any(part in name for part in ["embed", "wte", "wpe"]):
        return 0
    return 1 if "lm_head" in name else 2


def randomize(model, seed, scales):
    """Numbers so large that every part of the computation shows in the results."""
    generator = torch.Generator().manual_seed(seed)
    unit = 0.0 if "gemma" in model.config.model_type else 1.0
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            part = name.rsplit(".", 2)[-2:]
            if tensor.dim() > 1 and "bias" not in part[-1] and not part[-1].startswith("A_log"):
                kind = kind_of(name)
                inputs = tensor.shape[-1] if "rg_lru" not in name else tensor.shape[-2]
                tensor.copy_(noise * (scales[kind] if kind < 2 else scales[2] / math.sqrt(inputs)))
                if "dt_proj" in name:
                    # The softplus of candle-transformers has no number beyond 88.
                    tensor.mul_(0.2)
            elif "bias" in part[-1]:
                tensor.copy_((tensor if part[-1] == "dt_bias" else 0.0) + 0.2 * noise)
            elif any(word in name for word in ["norm", "ln_"]):
                tensor.copy_(unit + 0.3 * noise)
            else:
                tensor.add_(0.2 * noise)


def comes_again(tokenizer, tokens):
    """Whether the tokens of their text are these."""
    return tokenizer.encode(tokenizer.decode(tokens)).ids == tokens


def words(tokenizer):
    """Tokens that begin a word, numerals and marks: a text of these alone is made of the same tokens again."""
    start = tokenizer.encode("The cat").ids
    names = [tokenizer.id_to_token(number) or "" for number in range(decoders.VOCABULARY)]
    return [number for number, name in enumerate(names)
            if (name[:1] in ("Ġ", "▁") and len(name) > 1 or name in tuple(string.digits + string.punctuation))
            and comes_again(tokenizer, start + [number])]


def speak_in_words(model, tokenizer):
    """Rows of the head so small that a greedy text consists of words and marks, and can be asked for as a text."""
    rows = model.get_output_embeddings().weight
    quiet = torch.ones(len(rows), dtype=torch.bool)
    quiet[words(tokenizer)] = False
    with torch.no_grad():
        rows[quiet] *= 0.15


def special_tokens(config, style, tokenizer):
    """The configuration with the tokenizer's numbers in it."""
    beginning, ends, _, _ = decoders.special_of(style)
    number = tokenizer.token_to_id
    numbers = dict(bos_token_id=number(beginning), eos_token_id=number(ends[0]), pad_token_id=number(ends[-1]))
    filled = dict(config, vocab_size=decoders.VOCABULARY)
    for key, value in numbers.items():
        if key in config:
            filled[key] = [value] if isinstance(config[key], list) else value
    return filled


@torch.inference_mode()
def greedy(model, prompts):
    """64 greedy tokens of each prompt, all at once: what fills up shorter rows lies behind all that a causal model sees."""
    rows, gaps = [list(prompt) for prompt in prompts], [math.inf] * len(prompts)
    for _ in range(decoders.STEPS):
        longest = max(len(row) for row in rows)
        logits = model(input_ids=torch.tensor([row + [0] * (longest - len(row)) for row in rows]), use_cache=False).logits
        for index, row in enumerate(rows):
            best = torch.topk(logits[index, len(row) - 1], 2)
            gaps[index] = min(gaps[index], (best.values[0] - best.values[1]).item())
            row.append(int(best.indices[0]))
    return [row[len(prompt):] for row, prompt in zip(rows, prompts)], gaps


def verified(model, prompt, tokens):
    """The logits behind the last token; a pass over the whole text, alone, has the same tokens and leaves no doubt."""
    logits = decoders.logits_of(model, prompt + tokens)
    best = torch.topk(logits[len(prompt) - 1:-1], 2)
    assert best.indices[:, 0].tolist() == tokens and (best.values[:, 0] - best.values[:, 1]).min() > decoders.GAP / 2
    return logits[-1]


def answers(model, candidates, wanted, special, tokenizer):
    """The first prompts whose greedy texts vary and leave no doubt, with those texts, or nothing where there are too few."""
    texts = zip(candidates, *greedy(model, candidates))
    sound = [(prompt, tokens) for prompt, tokens, gap in texts
             if gap >= decoders.GAP and len(set(tokens)) >= 10 and not special & set(tokens)
             and comes_again(tokenizer, prompt + tokens)]
    found = [(prompt, (tokens, verified(model, prompt, tokens))) for prompt, tokens in sound[:wanted]]
    return sorted(found, key=lambda pair: len(pair[0])) if len(found) == wanted else None


def candidates_of(tokenizer):
    """Prompts of unlike lengths, each of which is made again from its text."""
    texts = [tokenizer.encode(text).ids[:length] for text in decoders.TEXTS[:6] for length in [21, 8, 34]]
    return [prompt for prompt in texts if comes_again(tokenizer, prompt)]


def long_answer(model, tokenizer, length, special):
    """The same of one long prompt, or nothing. One at a time: they would be as many times as long together."""
    for start in range(4):
        texts = decoders.TEXTS[start:6] + decoders.TEXTS[:start]
        found = answers(model, [tokenizer.encode(" ".join(texts * 4)).ids[:length]], 1, special, tokenizer)
        if found is not None:
            return found
    return None


def seeded(family, config, tokenizer, special, longest):
    """The first seed whose texts vary and whose best tokens are clear at each step, with them and a second turn."""
    for seed in range(40):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        randomize(model, seed, SCALES.get(family, USUAL))
        speak_in_words(model, tokenizer)
        found = answers(model, candidates_of(tokenizer), 3 if longest else 4, special, tokenizer)
        long = long_answer(model, tokenizer, longest, special) if longest and found else []
        if found is None or long is None:
            continue
        found += long
        last, (tokens, _) = found[-1]
        turns = [last + tokens + tokenizer.encode(text, add_special_tokens=False).ids for text in SECONDS]
        second = next(filter(None, (answers(model, [turn], 1, special, tokenizer) for turn in turns)), None)
        if second is not None:
            return seed, model, found, second[0]
    raise SystemExit(f"{family}: no seed gives a text that varies")


def with_head(tensors):
    """Falcon's published files hold the head beside the embedding, though they are one."""
    return {**tensors, "lm_head.weight": tensors["transformer.word_embeddings.weight"].clone()}


CHATGLM = {
    "model.embed_tokens": "transformer.embedding.word_embeddings", "model.norm": "transformer.encoder.final_layernorm",
    "lm_head": "transformer.output_layer", "model.layers": "transformer.encoder.layers", "self_attn.o_proj":
    "self_attention.dense", "mlp.gate_up_proj": "mlp.dense_h_to_4h", "mlp.down_proj": "mlp.dense_4h_to_h",
}


def chatglm(tensors):
    """The names of ChatGLM, with queries, keys and values in one matrix, and the frequencies of the positions."""
    renamed = {}
    for name, tensor in tensors.items():
        for ours, theirs in CHATGLM.items():
            name = name.replace(ours, theirs)
        before, found, end = name.partition("self_attn.q_proj")
        if found:
            parts = [tensors[f"{before.replace('transformer.encoder', 'model')}self_attn.{part}_proj{end}"] for part in "qkv"]
            renamed[f"{before}self_attention.query_key_value{end}"] = torch.cat(parts)
        elif "self_attn" not in name:
            renamed[name] = tensor
    return {**renamed, "transformer.rotary_pos_emb.inv_freq": 1.0 / 50000.0 ** (torch.arange(0, 8, 2) / 8)}


PUBLISHED = {"falcon": with_head, "chatglm": chatglm}


def save_weights(folder, family, model):
    """The weights by their published names."""
    with tempfile.TemporaryDirectory() as temporary:
        model.save_pretrained(temporary)
        tensors = load_file(Path(temporary) / "model.safetensors")
    tensors = PUBLISHED.get(family, dict)(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def check(folder, found):
    """transformers itself makes the same of the folder."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    for prompt, (tokens, last) in found:
        difference = (decoders.logits_of(model, prompt + tokens)[-1] - last).abs().max()
        assert difference < 1e-4, f"{folder.name}: read back, the logits differ by {difference}"


def save_expected(folder, found, second, model):
    """What decoders.py writes, and the second turn."""
    prompts, answers = zip(*found)
    decoders.save_expected(folder, prompts, answers, model)
    turn, (tokens, last) = second
    expected = json.loads((folder / "expected.json").read_text())
    expected["continued"] = {"prompt": turn, "greedy": tokens}
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")
    tensors = load_file(folder / "expected.safetensors")
    tensors["continued.prompt"] = decoders.logits_of(model, turn)[-1].contiguous()
    tensors["continued.greedy"] = last.contiguous()
    save_file(tensors, folder / "expected.safetensors")


def make(family):
    """One folder."""
    recipe = FAMILIES[family]
    folder, style = FIXTURES / family, recipe["tokenizer"]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tokenizer, template = decoders.tokenizer_of(style)
    settings = special_tokens(recipe["config"], style, tokenizer)
    (folder / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    _, ends, _, special = decoders.special_of(style)
    numbers = {tokenizer.token_to_id(token) for token in special + ends}
    native = special_tokens(recipe["native"], style, tokenizer) if "native" in recipe else settings
    config = AutoConfig.for_model(**native) if "native" in recipe else AutoConfig.from_pretrained(folder)
    seed, model, found, second = seeded(family, config, tokenizer, numbers, recipe.get("longest", 0))
    save_weights(folder, family, model)
    decoders.save_tokenizer(folder, style, tokenizer, template)
    save_expected(folder, found, second, model)
    if "native" not in recipe:
        check(folder, found + [second])
    prompts, answers = zip(*found, second)
    decoders.tell(f"{family}, like {recipe['like']}", folder, seed, prompts, answers, tokenizer)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or FAMILIES:
        make(name)
