"""Writes the adapters (LoRA) of tests/fixtures/adapters, with PEFT's own results beside them.

A folder `BASE/NAME` is an adapter of the decoder tests/fixtures/text_to_text/BASE, as `save_pretrained` of PEFT lays it
out. `expected.json` holds prompts as token numbers with greedy tokens each; `expected.safetensors` the logits after each
prompt and after all of its greedy tokens. Those of GGUF files are of the weights that their blocks stand for. Call:

    python adapters.py [BASE ...]

Needs the PyPI packages of decoders.py, and peft.
"""

import json
import shutil
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import decoders

FIXTURES = decoders.FIXTURES.parent / "adapters"
STEPS = 32
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
NETWORK = ["gate_proj", "up_proj", "down_proj"]

# Every setting that is read appears in one of them; two of each base, so that one batch can have both.
ADAPTERS = {
    "llama": {
        "plain": dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
        "patterns": dict(
            r=6, lora_alpha=10, target_modules=ATTENTION + NETWORK, use_rslora=True,
            # Sorted, as PEFT writes them: the first that matches counts.
            rank_pattern={r".*layers\.1\.mlp\.down_proj": 9, "down_proj": 3, "k_proj": 2},
            alpha_pattern={r"model\.layers\.0\.self_attn\.q_proj": 20, "o_proj": 5},
        ),
    },
    # In 16 bits: of the former kind in several files and with biases, of the latter with windows.
    "llama_f16": {
        "all": dict(r=4, lora_alpha=6, target_modules="all-linear"),
        "values": dict(r=4, lora_alpha=10, target_modules=["v_proj", "down_proj"]),
    },
    "mistral": {
        "all": dict(r=4, lora_alpha=6, target_modules="all-linear"),
    },
    "qwen2": {
        "some_layers": dict(r=4, lora_alpha=12, target_modules=ATTENTION, layers_to_transform=[0, 2],
                            layers_pattern="layers"),
        "one_layer": dict(r=3, lora_alpha=12, target_modules=["up_proj", "o_proj"], layers_to_transform=1),
    },
    "qwen3": {
        "all": dict(r=5, lora_alpha=5, target_modules="all-linear"),
        "expression": dict(r=4, lora_alpha=8, target_modules=r".*\.(q|k|v|o|down)_proj",
                           exclude_modules=["layers.0.self_attn.k_proj", "v_proj"]),
    },
    "gemma": {
        "pickled": dict(r=4, lora_alpha=8, target_modules=ATTENTION + NETWORK),
        "excluded": dict(r=4, lora_alpha=6, target_modules="all-linear", exclude_modules=r".*layers\.[02]\..*"),
    },
    "gemma3": {
        "plain": dict(r=4, lora_alpha=6, target_modules=["q_proj", "gate_proj"]),
        "all": dict(r=2, lora_alpha=3, target_modules="all-linear"),
    },
    "phi3": {
        "fused": dict(r=4, lora_alpha=6, target_modules=["qkv_proj", "gate_up_proj", "down_proj"]),
        "out": dict(r=4, lora_alpha=8, target_modules=["o_proj"]),
    },
    "phi2": {
        "all": dict(r=4, lora_alpha=6, target_modules="all-linear"),
        "names": dict(r=4, lora_alpha=8, target_modules=["dense", "fc1", "v_proj"]),
    },
    # Of models with other parts too, those that adapters can change.
    "qwen3_moe": {"attention": dict(r=4, lora_alpha=8, target_modules=ATTENTION)},
    "qwen3_5": {"attention": dict(r=4, lora_alpha=8, target_modules=ATTENTION + NETWORK)},
    # Some of its layers have keys and values that nothing is computed with.
    "gemma3n": {"named": dict(r=4, lora_alpha=6, target_modules=ATTENTION + NETWORK)},
    "gguf_llama": {
        "plain": dict(r=4, lora_alpha=8, target_modules=ATTENTION + NETWORK),
        "queries": dict(r=4, lora_alpha=12, target_modules=["q_proj"]),
    },
    "gguf_phi3": {
        "fused": dict(r=4, lora_alpha=6, target_modules=["qkv_proj", "gate_up_proj"]),
        "out": dict(r=4, lora_alpha=8, target_modules=["o_proj", "down_proj"]),
    },
}
PICKLED = {("gemma", "pickled")}


def base_of(name):
    """The base model in 32 bits, with the numbers that its file has."""
    if not name.startswith("gguf_"):
        return AutoModelForCausalLM.from_pretrained(
            decoders.FIXTURES / name, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    family = name.removeprefix("gguf_")
    kind, changes = decoders.GGUF[family]
    tokenizer, _ = decoders.tokenizer_of(family)
    config = decoders.configuration(family, tokenizer, changes)
    special = decoders.special_of(family)
    ends = {tokenizer.token_to_id(token) for token in special[3] + special[1]}
    rounding = lambda model: decoders.gguf_round(model, kind)
    return decoders.seeded(config, decoders.prompts_of(tokenizer), ends, rounding)[1]


def greedy(model, prompt):
    """Greedy tokens with the logits behind the last, or nothing where two tokens are too close."""
    tokens = list(prompt)
    for _ in range(STEPS):
        logits = decoders.logits_of(model, tokens)[-1]
        best = torch.topk(logits, 2).values
        if (best[0] - best[1]).item() < decoders.GAP:
            return None
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt):], decoders.logits_of(model, tokens)[-1]


def randomize(model, seed):
    """Numbers large enough that each matrix shows in the results."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_" in name:
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(noise * (0.25 if "lora_A" in name else 0.15))


def make(base, settings, plain, prompts, folder):
    """One adapter."""
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    for seed in range(400):
        randomize(model, seed)
        found = [greedy(model, prompt) for prompt in prompts]
        if all(found) and all(one[0] != other for one, other in zip(found, plain)):
            break
    else:
        raise SystemExit(f"{folder}: no seed gives clear texts that are unlike the base's")
    pickled = (folder.parent.name, folder.name) in PICKLED
    model.save_pretrained(folder, safe_serialization=not pickled)
    (folder / "README.md").unlink(missing_ok=True)
    file = folder / "adapter_config.json"
    config = {**json.loads(file.read_text()), "base_model_name_or_path": None}
    # The order of a set is another at each run.
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    if isinstance(config["exclude_modules"], list):
        config["exclude_modules"].sort()
    file.write_text(json.dumps(config, indent=1) + "\n")
    cases = [{"prompt": prompt, "greedy": tokens} for prompt, (tokens, _) in zip(prompts, found)]
    (folder / "expected.json").write_text(json.dumps({"cases": cases}) + "\n")
    tensors = {}
    for index, (prompt, (_, last)) in enumerate(zip(prompts, found)):
        tensors[f"prompt.{index}"] = decoders.logits_of(model, prompt)[-1].contiguous()
        tensors[f"greedy.{index}"] = last.contiguous()
    save_file(tensors, folder / "expected.safetensors")
    again = model.unload()
    read = PeftModel.from_pretrained(again, folder).eval()
    assert torch.allclose(decoders.logits_of(read, prompts[0])[-1], tensors["prompt.0"], atol=1e-5), "as it was saved"
    read.unload()
    print(f"{folder.relative_to(FIXTURES)}: seed {seed}, texts unlike the base's", flush=True)


def make_all(name):
    """The adapters of one base."""
    shutil.rmtree(FIXTURES / name, ignore_errors=True)
    cases = json.loads((decoders.FIXTURES / name / "expected.json").read_text())["cases"]
    prompts = [case["prompt"] for case in cases[:3]]
    plain = [case["greedy"][:STEPS] for case in cases[:3]]
    for adapter, settings in ADAPTERS[name].items():
        folder = FIXTURES / name / adapter
        folder.mkdir(parents=True)
        make(base_of(name), settings, plain, prompts, folder)


if __name__ == "__main__":
    for name in sys.argv[1:] or ADAPTERS:
        make_all(name)
