"""Writes tiny random decoders with the settings that GGUF files may have to tests/fixtures/gguf, with what llama.cpp writes
greedily after a prompt of them in expected.json. Each file has another text than the same weights without its setting,
and no two best tokens that are close. Call:

    python gguf_variants.py [VARIANT ...]

Needs the PyPI packages numpy, gguf and xllamacpp.
"""

import json
import sys
import tempfile
import urllib.request
from pathlib import Path

import gguf
import numpy
import xllamacpp

FOLDER = Path(__file__).resolve().parent.parent / "fixtures" / "gguf"
WIDTH, HEADS, KV_HEADS, HEAD, FEED_FORWARD, LAYERS, VOCABULARY, CONTEXT = 32, 4, 2, 8, 32, 2, 64, 256
STEPS = 20
GAP = 0.05

F16 = gguf.GGMLQuantizationType.F16


class Variant:
    """What a file has beside or in place of the plain one of its architecture."""

    def __init__(self, architecture, keys=None, biases=(), drop=(), tensors=None, types=None, tied=False, fused=(),
                 parts=0, plain=None):
        self.architecture, self.keys, self.biases, self.drop = architecture, keys or {}, biases, drop
        self.tensors, self.types = tensors or {}, types or {}
        self.tied, self.fused, self.parts, self.plain = tied, fused, parts, plain


ATTENTION = ["attn_q", "attn_k", "attn_v"]
# Architectures with biases everywhere, norms included, and a feed-forward network without gates.
BIASED = ["phi2"]
EXPERTS = 4
COUNTS = {"expert_count": EXPERTS, "expert_used_count": 2}
# Gated delta nets in every other layer, with twice as many heads of values as of keys.
NETS = {"block_count": 4, "full_attention_interval": 2, "ssm.conv_kernel": 4, "ssm.state_size": 8, "ssm.group_count": 2,
        "ssm.time_step_rank": 4, "ssm.inner_size": 32, "rope.dimension_count": 4}
NET_EXPERTS = COUNTS | {"expert_feed_forward_length": FEED_FORWARD, "expert_shared_feed_forward_length": 24}
SECTIONS = {"rope.dimension_sections": [1, 1, 0, 0]}
# Keys of architectures, those of GPT-OSS with the window of every other layer. All experts of a file are as wide.
KEYS = {
    "gpt-oss": COUNTS | {"expert_feed_forward_length": FEED_FORWARD, "attention.sliding_window": 8},
    "qwen2moe": COUNTS | {"expert_feed_forward_length": FEED_FORWARD, "expert_shared_feed_forward_length": 24},
    "qwen3moe": COUNTS | {"expert_feed_forward_length": FEED_FORWARD},
    "qwen3next": NETS | NET_EXPERTS,
    "qwen35": NETS | SECTIONS,
    "qwen35moe": NETS | SECTIONS | NET_EXPERTS,
}
# Gemmas have norms after their layers, large embeddings, and no head of their own.
SANDWICH, GEMMAS = ["gemma2", "gemma3"], ["gemma", "gemma2", "gemma3"]
EPSILON = {"phi2": "attention.layer_norm_epsilon"}
FACTORS = numpy.array([1.0, 1.5, 3.0, 6.0], dtype=numpy.float32)
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}

VARIANTS = {
    "llama-biases": Variant("llama", biases=[*ATTENTION, "attn_output", "ffn_gate", "ffn_up", "ffn_down"]),
    "llama-one-bias": Variant("llama", biases=["attn_v", "ffn_up"]),
    "qwen2-output-bias": Variant("qwen2", biases=["output"]),
    "qwen2-tied-output-bias": Variant("qwen2", biases=["output"], tied=True),
    "llama-tied": Variant("llama", tied=True, plain=False),
    "llama-defaults": Variant("llama", drop=["rope.freq_base", "rope.dimension_count", "attention.key_length",
                                             "attention.value_length"], plain=False),
    "llama-no-kv-heads": Variant("llama", keys={"attention.head_count_kv": HEADS}, drop=["attention.head_count_kv"],
                                 plain=False),
    "llama-head-counts": Variant("llama", keys={"attention.head_count": [HEADS] * LAYERS,
                                                "attention.head_count_kv": [KV_HEADS] * LAYERS}, plain=False),
    "llama-factor": Variant("llama", keys={"rope.scaling.factor": 4.0}),
    "llama-scale-linear": Variant("llama", keys={"rope.scale_linear": 4.0}),
    "llama-none": Variant("llama", keys={"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, plain=False),
    "llama-attn-factor": Variant("llama", keys={"rope.scaling.attn_factor": 1.5}),
    "llama-freqs": Variant("llama", keys={"rope.scaling.factor": 2.0, "rope.scaling.attn_factor": 1.3},
                           tensors={"rope_freqs.weight": FACTORS}),
    "llama-longrope": Variant("llama", keys={"rope.scaling.type": "longrope", "rope.scaling.attn_factor": 1.2},
                              tensors={"rope_factors_short.weight": FACTORS, "rope_factors_long.weight": FACTORS * 2}),
    "qwen2-yarn": Variant("qwen2", keys=YARN),
    "qwen3-yarn": Variant("qwen3", keys=YARN | {"rope.scaling.attn_factor": 1.2, "rope.scaling.yarn_beta_fast": 16.0,
                                                "rope.scaling.yarn_beta_slow": 2.0}),
    "llama-yarn-attn-factor": Variant("llama", keys=YARN | {"rope.scaling.yarn_attn_factor": 1.5,
                                                            "rope.scaling.yarn_log_multiplier": 0.3}),
    "phi2-separate": Variant("phi2", plain=False),
    "phi2-fused-partial": Variant("phi2", keys={"rope.dimension_count": 4}, fused=["qkv"]),
    "phi3-partial": Variant("phi3", keys={"rope.dimension_count": 4, "rope.scaling.attn_factor": 1.2},
                            fused=["qkv", "up"]),
    "phi3-separate": Variant("phi3", fused=["up"], plain=False),
    "phi3-fused-bias": Variant("phi3", fused=["qkv", "up"], biases=["attn_qkv"]),
    "gemma3-period": Variant("gemma3", keys={"attention.sliding_window": 8, "attention.sliding_window_pattern": 2}),
    "gemma3-no-window": Variant("gemma3", plain=False),
    "gemma3-linear": Variant("gemma3", keys={"attention.sliding_window": 8, "attention.sliding_window_pattern": 2,
                                             "rope.scaling.factor": 8.0, "rope.freq_base_swa": 500.0}),
    "gemma-wide-heads": Variant("gemma", keys={"attention.key_length": 16, "attention.value_length": 16,
                                               "rope.dimension_count": 16}, plain=False),
    "gemma2-defaults": Variant("gemma2", plain=False),
    "gemma2-window": Variant("gemma2", keys={"attention.sliding_window": 8, "attention.key_length": 16,
                                             "attention.value_length": 16, "rope.dimension_count": 16}),
    "gemma2-caps": Variant("gemma2", keys={"attn_logit_softcapping": 1.0, "final_logit_softcapping": 5.0}),
    "gemma2-linear": Variant("gemma2", keys={"attention.sliding_window": 8, "rope.scaling.factor": 8.0}),
    "qwen3moe-experts": Variant("qwen3moe", plain=False),
    # Together the chosen experts are as wide as the feed-forward network that the file tells of.
    "qwen3moe-no-width": Variant("qwen3moe", keys={"feed_forward_length": 2 * FEED_FORWARD},
                                 drop=["expert_feed_forward_length"], plain=False),
    "qwen2moe-experts": Variant("qwen2moe", plain=False),
    "qwen2moe-no-widths": Variant("qwen2moe", keys={"feed_forward_length": 2 * FEED_FORWARD,
                                                    "expert_shared_feed_forward_length": 2 * FEED_FORWARD},
                                  drop=["expert_feed_forward_length", "expert_shared_feed_forward_length"],
                                  plain=False),
    "qwen3next-nets": Variant("qwen3next", plain=False),
    # As files were before queries, keys and values had a tensor of their own.
    "qwen3next-old": Variant("qwen3next", fused=["qkvz"], plain=False),
    "qwen35-nets": Variant("qwen35", plain=False),
    "qwen35-listed": Variant("qwen35", keys={"attention.recurrent_layers": [True, True, False, True]}, plain=False),
    "qwen35moe-nets": Variant("qwen35moe", plain=False),
    "mistral3-plain": Variant("mistral3", plain=False),
    # What Ministral 3 has, for a text beyond the context of the pretraining.
    "mistral3-yarn": Variant("mistral3", keys=YARN | {
        "rope.scaling.original_context_length": 8, "rope.scaling.yarn_log_multiplier": 1.0,
        "attention.temperature_scale": 0.4}),
    "mistral3-log-multiplier": Variant("mistral3", keys=YARN | {"rope.scaling.factor": 16.0,
                                                                "rope.scaling.yarn_log_multiplier": 3.0}),
    "smollm3-positions": Variant("smollm3", keys={"block_count": 4}, plain=False),
    "llama-experts": Variant("llama", keys=COUNTS, plain=False),
    "gpt-oss-window": Variant("gpt-oss", plain=False),
    "gpt-oss-yarn": Variant("gpt-oss", keys=YARN),
    "llama-codebooks": Variant("llama", types={"ffn_up": "IQ4_NL", "attn_v": "IQ4_NL", "ffn_down": "MXFP4",
                                               "attn_output": "MXFP4"}, plain=False),
    "llama-parts": Variant("llama", parts=3, plain=False),
}


def random_blocks(kind, rows, columns, random):
    """A matrix in random blocks of small numbers."""
    numbers, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (rows, columns // numbers, size), dtype=numpy.uint8)
    if kind == gguf.GGMLQuantizationType.MXFP4:
        blocks[..., 0] = random.integers(121, 124, blocks.shape[:2])
    else:
        scales = random.uniform(0.002, 0.004, blocks.shape[:2]).astype(numpy.float16)
        blocks[..., :2] = scales.view(numpy.uint8).reshape(*blocks.shape[:2], 2)
    return blocks.reshape(rows, -1)


def write(path, variant, seed):
    """Writes the file, or its parts."""
    random = numpy.random.default_rng(seed)
    limits = {"split_max_tensors": 8} if variant.parts else {}
    writer = gguf.GGUFWriter(None if variant.parts else path, variant.architecture, **limits)
    kv_heads = variant.keys.get("attention.head_count_kv", KV_HEADS)
    kv_heads = kv_heads[0] if isinstance(kv_heads, list) else kv_heads
    keys = {
        "context_length": CONTEXT, "embedding_length": WIDTH, "block_count": LAYERS,
        "feed_forward_length": FEED_FORWARD, "attention.head_count": HEADS,
        "attention.head_count_kv": kv_heads, EPSILON.get(variant.architecture, "attention.layer_norm_rms_epsilon"): 1e-5,
        "rope.freq_base": 10000.0,
        "rope.dimension_count": HEAD, "attention.key_length": HEAD, "attention.value_length": HEAD,
    } | KEYS.get(variant.architecture, {}) | variant.keys
    layers, head = keys["block_count"], keys["attention.key_length"]
    for key, value in keys.items():
        if key in variant.drop:
            continue
        name = f"{variant.architecture}.{key}"
        match value:
            case str():
                writer.add_string(name, value)
            case float():
                writer.add_float32(name, value)
            case list():
                writer.add_array(name, value)
            case _:
                writer.add_uint32(name, value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{index}" for index in range(VOCABULARY)])
    writer.add_token_types([gguf.TokenType.NORMAL] * VOCABULARY)
    writer.add_token_merges(["t 0"])
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)

    def matrix(name, rows, columns, scale=0.35):
        part = name.split(".")[-1]
        values = random.standard_normal((rows, columns)) * scale
        if part in variant.types:
            kind = gguf.GGMLQuantizationType[variant.types[part]]
            writer.add_tensor(f"{name}.weight", random_blocks(kind, rows, columns, random), raw_dtype=kind)
        else:
            writer.add_tensor(f"{name}.weight", values.astype(numpy.float16))
        # The same numbers are drawn whether the bias is there or not.
        bias = random.standard_normal(rows) * 0.7
        own = variant.architecture in ["qwen2", "qwen2moe"] and part in ATTENTION
        own |= variant.architecture == "gpt-oss" and part in [*ATTENTION, "attn_output", "ffn_gate_inp"]
        if part in variant.biases or own or variant.architecture in BIASED and part != "token_embd":
            writer.add_tensor(f"{name}.bias", bias.astype(numpy.float32))

    def norm(name, size):
        # Those after Gemma's layers are large, so that the embeddings do not drown what the layers add.
        scale = 4.0 if ".post_" in name and variant.architecture in SANDWICH else 1.0
        values = scale * (1 + 0.3 * random.standard_normal(size))
        writer.add_tensor(f"{name}.weight", values.astype(numpy.float32))
        if variant.architecture in BIASED:
            writer.add_tensor(f"{name}.bias", (0.3 * random.standard_normal(size)).astype(numpy.float32))

    def experts(at):
        """All experts' matrices; GPT-OSS's in blocks, and with biases."""
        kind = gguf.GGMLQuantizationType.MXFP4
        for part, rows, columns in [("gate", FEED_FORWARD, WIDTH), ("up", FEED_FORWARD, WIDTH),
                                    ("down", WIDTH, FEED_FORWARD)]:
            if variant.architecture != "gpt-oss":
                values = 0.35 * random.standard_normal((EXPERTS, rows, columns))
                writer.add_tensor(f"{at}ffn_{part}_exps.weight", values.astype(numpy.float16))
                continue
            blocks = random_blocks(kind, EXPERTS * rows, columns, random).reshape(EXPERTS, rows, -1)
            writer.add_tensor(f"{at}ffn_{part}_exps.weight", blocks, raw_dtype=kind)
            bias = 0.5 * random.standard_normal((EXPERTS, rows))
            writer.add_tensor(f"{at}ffn_{part}_exps.bias", bias.astype(numpy.float32))

    def vector(name, values):
        writer.add_tensor(name, values.astype(numpy.float32))

    def net(at):
        """A gated delta net."""
        keys_, values = keys["ssm.group_count"] * keys["ssm.state_size"], keys["ssm.inner_size"]
        heads, channels = keys["ssm.time_step_rank"], 2 * keys_ + values
        if "qkvz" in variant.fused:
            matrix(f"{at}ssm_in", channels + values, WIDTH)
        else:
            matrix(f"{at}attn_qkv", channels, WIDTH)
            matrix(f"{at}attn_gate", values, WIDTH)
        if variant.architecture == "qwen3next":
            matrix(f"{at}ssm_ba", 2 * heads, WIDTH)
        else:
            matrix(f"{at}ssm_beta", heads, WIDTH)
            matrix(f"{at}ssm_alpha", heads, WIDTH)
        vector(f"{at}ssm_conv1d.weight", 0.5 * random.standard_normal((channels, keys["ssm.conv_kernel"])))
        vector(f"{at}ssm_dt.bias", random.standard_normal(heads))
        vector(f"{at}ssm_a", -numpy.exp(random.standard_normal(heads) - 2.0))
        norm(f"{at}ssm_norm", values // heads)
        matrix(f"{at}ssm_out", WIDTH, values)

    for name, values in variant.tensors.items():
        writer.add_tensor(name, values)
    matrix("token_embd", VOCABULARY, WIDTH, 0.3 if variant.architecture in GEMMAS else 1.0)
    for layer in range(layers):
        at = f"blk.{layer}."
        norm(f"{at}attn_norm", WIDTH)
        has_nets = "ssm.state_size" in keys
        listed = keys.get("attention.recurrent_layers")
        is_net = has_nets and (listed[layer] if listed else (layer + 1) % keys["full_attention_interval"] != 0)
        if is_net:
            net(at)
        elif "qkv" in variant.fused:
            matrix(f"{at}attn_qkv", (HEADS + 2 * kv_heads) * head, WIDTH)
        else:
            # Beside attention's gates, if it has any.
            matrix(f"{at}attn_q", HEADS * head * (2 if has_nets else 1), WIDTH)
            matrix(f"{at}attn_k", kv_heads * head, WIDTH)
            matrix(f"{at}attn_v", kv_heads * head, WIDTH)
        if variant.architecture in ["qwen3", "qwen3moe", "gemma3"] or has_nets and not is_net:
            norm(f"{at}attn_q_norm", head)
            norm(f"{at}attn_k_norm", head)
        if not is_net:
            matrix(f"{at}attn_output", WIDTH, HEADS * head)
        before_network = "post_attention_norm" if has_nets else "ffn_norm"
        if variant.architecture == "gpt-oss":
            writer.add_tensor(f"{at}attn_sinks.weight", random.standard_normal(HEADS).astype(numpy.float32))
            norm(f"{at}post_attention_norm", WIDTH)
            matrix(f"{at}ffn_gate_inp", EXPERTS, WIDTH)
            experts(at)
            continue
        if "expert_count" in keys:
            norm(f"{at}{before_network}", WIDTH)
            matrix(f"{at}ffn_gate_inp", EXPERTS, WIDTH)
            experts(at)
            shared = keys.get("expert_shared_feed_forward_length")
            if shared:
                gate = 0.35 * random.standard_normal(WIDTH)
                writer.add_tensor(f"{at}ffn_gate_inp_shexp.weight", gate.astype(numpy.float32))
                matrix(f"{at}ffn_gate_shexp", shared, WIDTH)
                matrix(f"{at}ffn_up_shexp", shared, WIDTH)
                matrix(f"{at}ffn_down_shexp", WIDTH, shared)
            continue
        if variant.architecture not in BIASED:
            norm(f"{at}{before_network}", WIDTH)
        if variant.architecture in SANDWICH:
            norm(f"{at}post_attention_norm", WIDTH)
            norm(f"{at}post_ffw_norm", WIDTH)
        if "up" in variant.fused:
            matrix(f"{at}ffn_up", 2 * FEED_FORWARD, WIDTH)
        else:
            if variant.architecture not in BIASED:
                matrix(f"{at}ffn_gate", FEED_FORWARD, WIDTH)
            matrix(f"{at}ffn_up", FEED_FORWARD, WIDTH)
        matrix(f"{at}ffn_down", WIDTH, FEED_FORWARD)
    norm("output_norm", WIDTH)
    if variant.tied or variant.architecture in GEMMAS:
        if "output" in variant.biases:
            writer.add_tensor("output.bias", (random.standard_normal(VOCABULARY) * 2).astype(numpy.float32))
    else:
        matrix("output", VOCABULARY, WIDTH)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ask(server, path, body):
    request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=60))


def serve(path):
    """llama.cpp with the file, its caches in 32 bits."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.warmup, params.n_parallel = CONTEXT, False, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.verbosity = -1
    return xllamacpp.Server(params)


def greedy(path, prompt):
    """The tokens that llama.cpp writes, and the smallest distance of the two best."""
    answer = ask(serve(path), "/completion", {
        "prompt": prompt, "n_predict": STEPS, "temperature": 0.0, "return_tokens": True, "n_probs": 2,
        "samplers": ["temperature"], "cache_prompt": False,
    })
    tops = [step["top_logprobs"] for step in answer["completion_probabilities"]]
    return answer["tokens"], min(first["logprob"] - second["logprob"] for first, second in tops)


def file_of(folder, name, variant):
    """The path to write to, and the one to load."""
    first = folder / (f"{name}-00001-of-{variant.parts:05}.gguf" if variant.parts else f"{name}.gguf")
    return folder / f"{name}.gguf", first


def make(name, variant):
    prompt = [int(token) for token in numpy.random.default_rng(1).integers(1, VOCABULARY, 16)]
    heads = "attention.key_length" in variant.keys
    sizes = ["attention.key_length", "attention.value_length", "rope.dimension_count"] if heads else []
    keys = {key: variant.keys[key] for key in sizes}
    plain = Variant(variant.architecture, keys=keys, tied=variant.tied, fused=variant.fused)
    for seed in range(1000):
        with tempfile.TemporaryDirectory() as temporary:
            target, first = file_of(Path(temporary), name, variant)
            write(target, variant, seed)
            tokens, gap = greedy(first, prompt)
            if gap < GAP or len(tokens) < STEPS or len(set(tokens)) < 6:
                continue
            if variant.plain is None:
                other = Path(temporary) / "plain.gguf"
                write(other, plain, seed)
                if greedy(other, prompt)[0] == tokens:
                    continue
        target, first = file_of(FOLDER, name, variant)
        write(target, variant, seed)
        size = sum(path.stat().st_size for path in FOLDER.glob(f"{name}*.gguf"))
        print(f"{name}: seed {seed}, least gap {gap:.3f}, {size} bytes")
        return {"prompt": prompt, "greedy": tokens, "file": first.name}
    raise SystemExit(f"no seed for {name}")


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / "expected.json"
    expected = json.loads(file.read_text()) if file.exists() else {}
    for name in sys.argv[1:] or VARIANTS:
        try:
            expected[name] = make(name, VARIANTS[name])
        except RuntimeError as error:
            print(f"{name}: llama.cpp refuses: {error}")
    lines = [f"{json.dumps(name)}: {json.dumps(expected[name])}" for name in sorted(expected)]
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
