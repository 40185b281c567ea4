"""Writes the tiny GGUF files of tests/fixtures/transformers_gguf, which candle-transformers computes, with what transformers
writes with the numbers that their blocks stand for. llama.cpp, which multiplies blocks as the library does, has to write
the same. The models are those of tests/fixtures/transformers, which have to be there. Call:

    python long_tail_gguf.py [FAMILY ...]

Needs the PyPI packages torch, transformers, tokenizers, safetensors, gguf, numpy and xllamacpp.
"""

import json
import shutil
import sys

import gguf
import torch
from transformers import AutoModelForCausalLM

import decoders
import gguf_variants
import long_tail

FIXTURES = long_tail.FIXTURES.parent / "transformers_gguf"
decoders.GAP = 0.004
gguf_variants.CONTEXT = 1024
gguf_variants.STEPS = decoders.STEPS
# Types of matrices, and of those of a layer.
# Types of matrices that are no numbers of 32 bits, the more the better: the first of these with which no choice of a token is
# close is taken.
KINDS = {
    "lfm2": [
        {"feed_forward.w2": "Q8_0", "conv.out_proj": "Q8_0", "self_attn.v_proj": "Q4_0"},
        {"feed_forward.w2": "Q8_0"},
        {"layers.0.feed_forward.w2": "Q8_0", "layers.1.self_attn.v_proj": "Q4_0"},
        {"layers.0.feed_forward.w2": "Q8_0", "layers.1.self_attn.v_proj": "Q8_0"},
        {"layers.0.feed_forward.w2": "Q8_0"},
        {"layers.1.feed_forward.w2": "Q8_0"},
    ],
    "glm4": [
        {"mlp.down_proj": "Q8_0", "self_attn.v_proj": "Q4_0"},
        {"mlp.down_proj": "Q8_0"},
        {"layers.0.mlp.down_proj": "Q8_0", "layers.1.self_attn.v_proj": "Q4_0"},
        {"layers.0.mlp.down_proj": "Q8_0"},
        {"layers.1.mlp.down_proj": "Q8_0"},
    ],
}
NAMES = {
    "lfm2": {
        "model.embed_tokens": "token_embd", "model.embedding_norm": "token_embd_norm", "operator_norm": "attn_norm",
        "ffn_norm": "ffn_norm", "conv.conv": "shortconv.conv", "conv.in_proj": "shortconv.in_proj",
        "conv.out_proj": "shortconv.out_proj", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.out_proj": "attn_output", "self_attn.q_layernorm": "attn_q_norm",
        "self_attn.k_layernorm": "attn_k_norm", "feed_forward.w1": "ffn_gate", "feed_forward.w2": "ffn_down",
        "feed_forward.w3": "ffn_up"},
    "glm4": decoders.NAMES | {
        "post_attention_layernorm": "ffn_norm", "post_self_attn_layernorm": "post_attention_norm",
        "post_mlp_layernorm": "post_ffw_norm"},
}


def blocks(kinds, name, tensor):
    """A matrix in its blocks, and what they stand for."""
    kind = gguf.GGMLQuantizationType[next((kind for part, kind in kinds.items() if part in name), "F32")]
    made = gguf.quants.quantize(tensor.detach().numpy(), kind)
    return kind, made, torch.from_numpy(gguf.quants.dequantize(made, kind)).float()


def gguf_name(family, name):
    stem, end = name.rsplit(".", 1)
    if stem in NAMES[family]:
        return f"{NAMES[family][stem]}.{end}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[family][part]}.{end}"


def settings(writer, family, config):
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if family == "lfm2":
        attends = [kind == "full_attention" for kind in config.layer_types]
        writer.add_head_count_kv([config.num_key_value_heads if attends else 0 for attends in attends])
        writer.add_layer_norm_rms_eps(config.norm_eps)
        writer.add_shortconv_l_cache(config.conv_L_cache)
    else:
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_rope_dimension_count(config.head_dim // 2)


def write(path, family, model, kinds, style, tokenizer, template):
    writer = gguf.GGUFWriter(path, family)
    state = {name: tensor.detach() for name, tensor in model.named_parameters()}
    settings(writer, family, model.config)
    wide = next(tensor for name, tensor in state.items() if "w1.weight" in name or "gate_up_proj" in name)
    writer.add_feed_forward_length(len(wide) // (2 if family == "glm4" else 1))
    decoders.gguf_tokenizer(writer, style, decoders.Named(tokenizer), template)
    for name, tensor in state.items():
        if "conv.conv" in name:
            writer.add_tensor(gguf_name(family, name), tensor.squeeze(1).contiguous().numpy())
        elif tensor.dim() == 2:
            kind, made, _ = blocks(kinds, name, tensor)
            writer.add_tensor(gguf_name(family, name), made, raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(family, name), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def written(model, prompts):
    """The greedy text of each prompt and the logits behind it, unless a choice is close."""
    found = []
    for prompt in prompts:
        [tokens], [gap] = long_tail.greedy(model, [prompt])
        if gap < decoders.GAP:
            return None
        found.append((tokens, decoders.logits_of(model, prompt + tokens)[-1]))
    return found


def attempt(family, kinds, prompts, numbers):
    """The model of long_tail.py in these blocks, and what it writes after the same prompts."""
    model = AutoModelForCausalLM.from_pretrained(long_tail.FIXTURES / family, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.dim() == 2:
                tensor.data = blocks(kinds, name, tensor)[2]
    found = written(model, prompts)
    if found is None or any(numbers & set(tokens) for tokens, _ in found):
        return None
    return model, found


def make(family):
    recipe = long_tail.FAMILIES[family]
    folder, style = FIXTURES / family, recipe["tokenizer"]
    tokenizer, template = decoders.tokenizer_of(style)
    _, ends, _, special = decoders.special_of(style)
    numbers = {tokenizer.token_to_id(token) for token in special + ends}
    expected = json.loads((long_tail.FIXTURES / family / "expected.json").read_text())
    # The second turn is that of the safetensors, whatever the answer of the first is here.
    prompts = [case["prompt"] for case in expected["cases"]] + [expected["continued"]["prompt"]]
    for kinds in KINDS[family]:
        attempted = attempt(family, kinds, prompts, numbers)
        print(f"{family}: {kinds}: {'close' if attempted is None else 'clear'}", flush=True)
        if attempted is None:
            continue
        model, found = attempted
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        file = folder / f"tiny-{family}.gguf"
        write(file, family, model, kinds, style, tokenizer, template)
        cases = [{"prompt": prompt, "greedy": tokens} for prompt, (tokens, _) in zip(prompts, found)]
        (folder / "expected.json").write_text(json.dumps({"cases": cases[:-1], "continued": cases[-1]}) + "\n")
        same = []
        for case in cases:
            theirs, gap = gguf_variants.greedy(file, case["prompt"])
            same.append(theirs == case["greedy"])
            print(f"{family}: llama.cpp writes {'the same' if same[-1] else 'another text'}, least gap {gap:.3f}", flush=True)
        if all(same):
            decoders.tell(f"{family}, like {recipe['like']}, in GGUF", folder, 0, prompts, found, tokenizer)
            return
    raise SystemExit(f"{family}: no blocks leave the choices clear")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or KINDS:
        make(name)
