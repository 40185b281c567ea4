"""Writes models of tests/fixtures/vision once more as two GGUF files each, text half and projector, to
tests/fixtures/vision_gguf: the same numbers, so that they have the same features, logits and answers. expected.json has what
llama.cpp writes greedily about a picture that it need not resize, where the words around it are those of transformers, up to
the first step at which another token is about as good. Call:

    python vision_gguf.py [FAMILY ...]

Needs the PyPI packages numpy, gguf, pillow and xllamacpp.
"""

import base64
import io
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import gguf
import numpy
import xllamacpp
from PIL import Image

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
OUT = FIXTURES / "vision_gguf"
STEPS = 12
F32, F16, BF16 = (gguf.GGMLQuantizationType[name] for name in ["F32", "F16", "BF16"])


class Model:
    """The small files and the weights of a fixture."""

    def __init__(self, family):
        self.folder = FIXTURES / "vision" / family
        self.config = self.json("config.json")
        self.preprocessor = self.json("preprocessor_config.json")
        self.tokenizer = self.json("tokenizer.json")
        self.template = self.json("chat_template.json")["chat_template"]
        self.tensors = {}
        for file in sorted(self.folder.glob("model*.safetensors")):
            data = file.read_bytes()
            length = int.from_bytes(data[:8], "little")
            for name, entry in json.loads(data[8:8 + length]).items():
                if name != "__metadata__":
                    begin, end = (8 + length + offset for offset in entry["data_offsets"])
                    kind = {"BF16": numpy.uint16, "F32": numpy.float32, "F16": numpy.float16}[entry["dtype"]]
                    values = numpy.frombuffer(data[begin:end], kind)
                    if entry["dtype"] == "BF16":
                        values = (values.astype(numpy.uint32) << 16).view(numpy.float32)
                    self.tensors[name] = values.astype(numpy.float32).reshape(entry["shape"])

    def json(self, name):
        return json.loads((self.folder / name).read_text())

    def part(self, prefix):
        """The tensors whose names begin so, without it."""
        return {name[len(prefix):]: values for name, values in self.tensors.items() if name.startswith(prefix)}


def add(writer, name, values, kind=BF16):
    # llama.cpp rounds what it multiplies with 16 bits, so its answers are those of the same numbers in 32 bits.
    kind = F32 if values.ndim == 1 or "--ask" in sys.argv else kind
    writer.add_tensor(name, gguf.quants.quantize(numpy.ascontiguousarray(values), kind), raw_dtype=kind)


def close(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def renamed(name, table):
    for old, new in table.items():
        if name.startswith(old):
            return new + name[len(old):]
    sys.exit(f"{name} has no name")


# The text half ------------------------------------------------------------------------------------------------------

BLOCK = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}
SANDWICH = BLOCK | {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
                    "post_feedforward_layernorm": "post_ffw_norm"}


def text_name(name, block):
    if name.startswith("layers."):
        _, layer, rest = name.split(".", 2)
        return f"blk.{layer}." + renamed(rest, block)
    return renamed(name, {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"})


def permuted(values, heads):
    """Rows of queries and keys in llama.cpp's order."""
    return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def text_half(path, model, architecture, tensors, keys, words=None):
    """Writes the text half, with tokens that are written otherwise in place of those of `words`."""
    text = model.config.get("text_config", model.config)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("model")
    heads, kv_heads = text["num_attention_heads"], text["num_key_value_heads"]
    head = text.get("head_dim") or text["hidden_size"] // heads
    for key, value in ({
        "context_length": text["max_position_embeddings"], "embedding_length": text["hidden_size"],
        "block_count": text["num_hidden_layers"], "feed_forward_length": text["intermediate_size"],
        "attention.head_count": heads, "attention.head_count_kv": kv_heads, "attention.key_length": head,
        "attention.value_length": head, "rope.dimension_count": head,
        "rope.freq_base": float(text.get("rope_theta", 10000.0)),
        "attention.layer_norm_rms_epsilon": text.get("rms_norm_eps", 1e-6),
    } | keys).items():
        if isinstance(value, list):
            writer.add_array(f"{architecture}.{key}", value)
        else:
            add_key = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
            add_key(f"{architecture}.{key}", value)
    tokenizer(writer, model, words or {})
    for name, values in tensors.items():
        if architecture == "gemma3" and "norm" in name:
            values = values + 1
        name = text_name(name, SANDWICH if architecture == "gemma3" else BLOCK)
        if architecture == "llama" and ".attn_q." in name:
            values = permuted(values, heads)
        if architecture == "llama" and ".attn_k." in name:
            values = permuted(values, kv_heads)
        add(writer, name, values)
    close(writer)


def tokenizer(writer, model, words):
    file, config = model.tokenizer, model.json("tokenizer_config.json")
    vocabulary = dict(file["model"]["vocab"]) | {token["content"]: token["id"] for token in file["added_tokens"]}
    added = {token["content"] for token in file["added_tokens"]}
    rows = next(values.shape[0] for name, values in model.tensors.items() if name.endswith("embed_tokens.weight"))
    by_id = {number: token for token, number in vocabulary.items()}
    tokens = [by_id.get(number, f"[PAD{number}]") for number in range(rows)]
    kind = gguf.TokenType
    def kind_of(token):
        if token in added:
            return kind.CONTROL
        if token not in vocabulary:
            return kind.UNUSED
        return kind.BYTE if file["model"]["byte_fallback"] and token.startswith("<0x") else kind.NORMAL
    merges = [merge if isinstance(merge, list) else merge.split(" ") for merge in file["model"]["merges"]]
    if file["model"]["byte_fallback"]:
        writer.add_tokenizer_model("llama")
        ranks = {"".join(merge): rank for rank, merge in reversed(list(enumerate(merges)))}
        writer.add_token_scores([-float(ranks.get(token, -1) + 1) for token in tokens])
        writer.add_add_space_prefix(False)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_token_list([words.get(token, token) for token in tokens])
    writer.add_token_types([kind_of(token) for token in tokens])
    def named(name):
        token = config.get(name)
        return vocabulary[token["content"] if isinstance(token, dict) else token] if token else None
    if (begin := named("bos_token")) is not None:
        writer.add_bos_token_id(begin)
    writer.add_add_bos_token("TemplateProcessing" in json.dumps(file["post_processor"]))
    ends = model.config.get("eos_token_id", named("eos_token"))
    ends = ends if isinstance(ends, list) else [ends]
    writer.add_eos_token_id(ends[0])
    if len(ends) > 1:
        writer.add_eot_token_id(ends[1])
    writer.add_chat_template(model.template)


# The projector ------------------------------------------------------------------------------------------------------

TOWER = {
    "embeddings.patch_embedding": "v.patch_embd", "embeddings.position_embedding": "v.position_embd",
    "embeddings.class_embedding": "v.class_embd", "pre_layrnorm": "v.pre_ln", "post_layernorm": "v.post_ln",
}
TOWER_BLOCK = {
    "layer_norm1": "ln1", "layer_norm2": "ln2", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.out_proj": "attn_out", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down",
}
WHOLE = ["v.patch_embd.weight", "v.position_embd.weight"]


def tower_name(name):
    if name.startswith("encoder.layers."):
        _, _, layer, rest = name.split(".", 3)
        return f"v.blk.{layer}." + renamed(rest, TOWER_BLOCK)
    return renamed(name, TOWER)


def projector(path, model, name, tensors, keys, activation="use_gelu", vision=None):
    vision, preprocessor = vision or model.config["vision_config"], model.preprocessor
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(name)
    width = next(values.shape[1] for name, values in model.tensors.items() if name.endswith("embed_tokens.weight"))
    writer.add_vision_projection_dim(width)
    writer.add_vision_image_size(vision["image_size"])
    writer.add_vision_patch_size(vision["patch_size"])
    writer.add_vision_embedding_length(vision["hidden_size"])
    writer.add_vision_feed_forward_length(vision["intermediate_size"])
    writer.add_vision_block_count(vision["num_hidden_layers"])
    writer.add_vision_head_count(vision["num_attention_heads"])
    writer.add_vision_attention_layernorm_eps(vision.get("layer_norm_eps", 1e-6))
    writer.add_vision_image_mean(preprocessor["image_mean"])
    writer.add_vision_image_std(preprocessor["image_std"])
    if activation:
        writer.add_bool(f"clip.{activation}", True)
    for key, value in keys.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    for name, values in tensors.items():
        add(writer, name, values, F32 if name in WHOLE else F16 if name == "mm.input_projection.weight" else BF16)
    close(writer)


def gemma3(model, folder):
    text = model.config["text_config"]
    text_half(folder / "model.gguf", model, "gemma3", model.part("language_model.model."), {
        "attention.sliding_window": text["sliding_window"], "attention.sliding_window_pattern": text["sliding_window_pattern"],
        "rope.scaling.type": "linear", "rope.scaling.factor": text["rope_scaling"]["factor"],
    }, {"<image_soft_token>": "<unused0>"})
    tower = {tower_name(name): values for name, values in model.part("vision_tower.vision_model.").items()}
    own = model.part("multi_modal_projector.")
    tower["mm.input_projection.weight"] = own["mm_input_projection_weight"]
    tower["mm.soft_emb_norm.weight"] = own["mm_soft_emb_norm.weight"] + 1
    projector(folder / "mmproj-model.gguf", model, "gemma3", tower, {"projector.scale_factor": 2})
    return "<start_of_turn>user\n\n\n<__media__>\n\nWhat is this?<end_of_turn>\n<start_of_turn>model\n"


def idefics3(model, folder):
    text = model.part("model.text_model.") | {"lm_head.weight": model.tensors["lm_head.weight"]}
    text_half(folder / "model.gguf", model, "llama", text, {})
    tower = {tower_name(name): values for name, values in model.part("model.vision_model.").items()}
    tower["mm.model.fc.weight"] = model.tensors["model.connector.modality_projection.proj.weight"]
    projector(folder / "mmproj-model.gguf", model, "idefics3", tower, {
        "projector.scale_factor": model.config["scale_factor"], "preproc_image_size": model.preprocessor["size"]["longest_edge"]})
    # llama.cpp writes a token for two lines before an image, which this vocabulary lacks.
    return None


QWEN = {"patch_embed.proj": "v.patch_embd", "merger.ln_q": "v.post_ln", "merger.mlp.0": "mm.0", "merger.mlp.2": "mm.2"}
QWEN_BLOCK = {"norm1": "ln1", "norm2": "ln2", "attn.proj": "attn_out", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down",
              "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def qwen_vl(model, folder, name, vision, keys, activation):
    sections = model.config["rope_scaling"]["mrope_section"] + [0]
    text_half(folder / "model.gguf", model, "qwen2vl", model.part("model."), {"rope.dimension_sections": sections})
    tower = {}
    for tensor, values in model.part("visual.").items():
        block, rest = (tensor.split(".", 2)[1:] if tensor.startswith("blocks.") else (None, tensor))
        if block and rest.startswith("attn.qkv"):
            for part, third in zip("qkv", numpy.split(values, 3)):
                tower[f"v.blk.{block}.attn_{part}{rest[len('attn.qkv'):]}"] = third
        elif block:
            tower[f"v.blk.{block}." + renamed(rest, QWEN_BLOCK)] = values
        elif tensor == "patch_embed.proj.weight":
            tower["v.patch_embd.weight"], tower["v.patch_embd.weight.1"] = values[:, :, 0], values[:, :, 1]
        else:
            tower[renamed(tensor, QWEN)] = values
    old = model.config["vision_config"]
    vision |= {"image_size": 560, "patch_size": old["patch_size"], "num_hidden_layers": old["depth"],
               "num_attention_heads": old["num_heads"]}
    keys |= {"spatial_merge_size": old["spatial_merge_size"], "image_min_pixels": model.preprocessor["min_pixels"],
             "image_max_pixels": model.preprocessor["max_pixels"]}
    projector(folder / "mmproj-model.gguf", model, name, tower, keys, activation, vision)
    return "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\n<__media__>What is this?<|im_end|>\n<|im_start|>assistant\n"


def qwen2_vl(model, folder):
    old = model.config["vision_config"]
    # The width of the networks is none of these, as in the published files.
    vision = {"hidden_size": old["embed_dim"], "intermediate_size": old["hidden_size"]}
    return qwen_vl(model, folder, "qwen2vl_merger", vision, {}, None)


def qwen2_5_vl(model, folder):
    old = model.config["vision_config"]
    keys = {"n_wa_pattern": old["fullatt_block_indexes"][0] + 1, "window_size": old["window_size"]}
    return qwen_vl(model, folder, "qwen2.5vl_merger", dict(old), keys, "use_silu")


PIXTRAL = {"patch_conv": "v.patch_embd", "ln_pre": "v.pre_ln"}
PIXTRAL_BLOCK = {"attention_norm": "ln1", "attention.q_proj": "attn_q", "attention.k_proj": "attn_k", "attention.v_proj": "attn_v",
                 "attention.o_proj": "attn_out", "ffn_norm": "ln2", "feed_forward.gate_proj": "ffn_gate",
                 "feed_forward.up_proj": "ffn_up", "feed_forward.down_proj": "ffn_down"}
PIXTRAL_OWN = {"linear_1": "mm.1", "linear_2": "mm.2", "norm": "mm.input_norm", "patch_merger.merging_layer": "mm.patch_merger"}


def of_pixtral(model, folder):
    text = model.part("language_model.model.") | {"lm_head.weight": model.tensors["language_model.lm_head.weight"]}
    text_half(folder / "model.gguf", model, "llama", text, {})
    vision, tower = model.config["vision_config"], {}
    for name, values in model.part("vision_tower.").items():
        if not name.startswith("transformer.layers."):
            tower[renamed(name, PIXTRAL)] = values
            continue
        _, _, layer, rest = name.split(".", 3)
        if "q_proj" in rest or "k_proj" in rest:
            values = permuted(values, vision["num_attention_heads"])
        tower[f"v.blk.{layer}." + renamed(rest, PIXTRAL_BLOCK)] = values
    tower |= {renamed(name, PIXTRAL_OWN): values for name, values in model.part("multi_modal_projector.").items()}
    breaks = next(token["id"] for token in model.tokenizer["added_tokens"] if token["content"] == "[IMG_BREAK]")
    tower["v.token_embd.img_break"] = text["embed_tokens.weight"][breaks]
    merge = model.config.get("spatial_merge_size")
    activation = {"silu": "use_silu", "gelu": "use_gelu"}[vision["hidden_act"]]
    projector(folder / "mmproj-model.gguf", model, "pixtral", tower, {"spatial_merge_size": merge} if merge else {}, activation,
              dict(vision, layer_norm_eps=1e-5))
    return "[INST]<__media__>What is this?[/INST]"


def pixtral(model, folder):
    # llama.cpp has other numbers than transformers for patches that are not merged, and why is not known.
    of_pixtral(model, folder)


def mistral3(model, folder):
    return of_pixtral(model, folder)


FAMILIES = {family.__name__: family for family in [gemma3, idefics3, qwen2_vl, qwen2_5_vl, pixtral, mistral3]}


# llama.cpp ----------------------------------------------------------------------------------------------------------


def ask(folder, prompt, picture):
    params = xllamacpp.CommonParams()
    params.model.path, params.mmproj.path = str(folder / "model.gguf"), str(folder / "mmproj-model.gguf")
    params.n_ctx, params.n_gpu_layers, params.warmup, params.n_parallel = 512, 0, False, 1
    params.mmproj_use_gpu = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.verbosity = 3 if os.environ.get("VERBOSE") else -1
    server = xllamacpp.Server(params)
    # The word that stands for a picture is another one each time.
    with urllib.request.urlopen(f"{server.listening_address}/props", timeout=60) as properties:
        prompt = prompt.replace("<__media__>", json.load(properties)["media_marker"])
    png = io.BytesIO()
    picture.save(png, "PNG")
    body = {
        "prompt": {"prompt_string": prompt, "multimodal_data": [base64.b64encode(png.getvalue()).decode()]},
        "n_predict": STEPS, "temperature": 0.0, "return_tokens": True, "n_probs": 2, "samplers": ["temperature"],
        "cache_prompt": False,
    }
    request = urllib.request.Request(f"{server.listening_address}/completion", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    answer = json.load(urllib.request.urlopen(request, timeout=120))
    tops = [step["top_logprobs"] for step in answer["completion_probabilities"]]
    # Up to the first step at which it could as well have been another.
    clear = [first["logprob"] - second["logprob"] > 0.05 for first, second in tops]
    count = clear.index(False) if False in clear else len(clear)
    first = [step["logprob"] for step in tops[0]]
    return {"tokens": answer["tokens"][:count], "best": first}


def recorded(family):
    """What llama.cpp writes, with the image as large as the tower takes it."""
    model = Model(family)
    side = model.config["vision_config"].get("image_size")
    # Of the families that take images of any size, whole merged patches.
    sides = {"gemma3": (side, side), "mistral3": (60, 48)}.get(family, (64, 48))
    picture = Image.open(FIXTURES / "vision_images" / "square.png").convert("RGB").resize(sides)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prompt = FAMILIES[family](model, folder)
        found = ask(folder, prompt, picture)
    OUT.mkdir(parents=True, exist_ok=True)
    name = "square-{}-{}.png".format(*sides)
    picture.save(OUT / name)
    print("FOUND" + json.dumps({"image": name} | found), flush=True)
    # Its threads may not end.
    os._exit(0)


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "--ask":
        recorded(sys.argv[2])
    for family in sys.argv[1:] or FAMILIES:
        folder = OUT / family
        folder.mkdir(parents=True, exist_ok=True)
        if FAMILIES[family](Model(family), folder) is None:
            continue
        done = subprocess.run([sys.executable, __file__, "--ask", family], capture_output=True, text=True)
        found = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
        if not found:
            sys.exit(f"{family}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        found = json.loads(found[0][5:])
        print(family, found)
        (folder / "expected.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
