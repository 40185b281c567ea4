"""Writes fuzz/seeds: a few small inputs for each fuzz target to begin with.

    python tests/references/fuzz_seeds.py
"""

import base64
import hashlib
import io
import json
import pathlib
import shutil
import struct

import gguf
import numpy
import torch
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent.parent
FOLDER = ROOT / "fuzz" / "seeds"


def write(target, name, content):
    path = FOLDER / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def images():
    pixels = numpy.random.default_rng(1).integers(0, 256, (9, 11, 4)).astype(numpy.uint8)
    rgb, rgba = Image.fromarray(pixels[..., :3].copy()), Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    cases = {
        "rgb.png": (rgb, {}),
        "rgba.png": (rgba, {"exif": exif}),
        "palette.png": (rgb.quantize(4), {"bits": 2}),
        "grey.jpg": (rgb.convert("L"), {}),
        "rgb.jpg": (rgb, {"subsampling": 2, "exif": exif}),
        "progressive.jpg": (rgb, {"progressive": True}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "lossy.webp": (rgb, {}),
        "alpha.webp": (rgba, {}),
        "lossless.webp": (rgba, {"lossless": True}),
        "plain.gif": (rgb.quantize(8), {}),
        "rgb.bmp": (rgb, {}),
        "palette.bmp": (rgb.quantize(8), {}),
    }
    for name, (image, options) in cases.items():
        buffer = io.BytesIO()
        image.save(buffer, {"jpg": "jpeg"}.get(name.split(".")[1], name.split(".")[1]), **options)
        write("image_input", name, buffer.getvalue())


def texts():
    standard = base64.b64encode(bytes(range(200, 256))).decode()
    write("base64", "standard", standard)
    write("base64", "url_safe", standard.replace("+", "-").replace("/", "_").rstrip("="))
    write("base64", "data", f"data:image/png;base64,{standard}")
    write("base64", "lines", f"{standard[:20]}\r\n{standard[20:]}\n")
    for number, text in enumerate([
        "http://example.org/a.png?b=c#d\nhttps://example.com/",
        "http://user:password@127.0.0.1:80/\n/b",
        "http://0x7f.1/\n//10.0.0.1/",
        "http://[::ffff:7f00:1]/\nfile:///etc/passwd",
        "https://1.1.1.1/\nhttp://2130706433/",
        "http://[64:ff9b::7f00:1]/\n../..",
        "http://xn--nxasmq6b./\n?a",
    ]):
        write("url_policy", str(number), text)
    write("chat_template", "chatml", "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
    write("chat_template", "namespace", "{%- set ns = namespace(found=false) -%}{%- for message in messages[::-1] -%}{%- if message.role == 'user' and not ns.found -%}{%- set ns.found = true -%}{{ bos_token ~ message.content | trim }}{%- else -%}{{ raise_exception('no') if message.role == 'tool' }}{%- endif -%}{%- endfor -%}")
    write("chat_template", "macro", "{%- macro turn(role, text) -%}<{{ role }}>{{ text.strip().split('x')[-1] | tojson }}{%- endmacro -%}{% for m in messages %}{{ turn(m.role, m.content) }}{% endfor %}{{ strftime_now('%Y') }}{{ range(3) | list | length }}{{ '%s' % 1 }}{{ 'a' * 3 }}{{ messages | map(attribute='role') | join(',') }}")


def safetensors(tensors):
    header, data = {}, b""
    for name, (kind, shape, content) in tensors.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def weights():
    values = numpy.arange(6, dtype=numpy.float32)
    write("safetensors", "two", safetensors({"a": ("F32", [2, 3], values.tobytes()), "b": ("F16", [1], b"\0\x3c")}))
    write("safetensors", "bf16", safetensors({"a": ("BF16", [2], b"\0\0\x80\x3f"), "b": ("F64", [], b"\0" * 8), "c": ("I64", [0], b"")}))
    write("safetensors", "metadata", safetensors({}).replace(b"{}", b'{"__metadata__":{"format":"pt"}}').replace(struct.pack("<Q", 2), struct.pack("<Q", 32), 1))


def pickles():
    """Of PyTorch's two forms of files: a tensor, one that is stored turned, and integers."""
    values = torch.arange(6.0).reshape(2, 3)
    for name, zipped in [("archive", True), ("legacy", False)]:
        buffer = io.BytesIO()
        tensors = {"a": values, "b": values.half().t(), "c": torch.nn.Parameter(torch.ones(1)), "d": torch.arange(2)}
        torch.save(tensors, buffer, _use_new_zipfile_serialization=zipped)
        write("pickle", name, buffer.getvalue())


def ggufs():
    path = FOLDER / "gguf" / "llama"
    path.parent.mkdir(parents=True)
    random = numpy.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(8)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(4)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(["a", "b", "ab", "<s>", "</s>"])
    writer.add_token_types([1, 1, 1, 3, 3])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(3)
    writer.add_eos_token_id(4)
    writer.add_chat_template("{{ messages[0].content }}")
    tensor = lambda *shape: random.normal(0, 0.1, shape).astype(numpy.float16)
    writer.add_tensor("token_embd.weight", tensor(5, 8))
    writer.add_tensor("output_norm.weight", numpy.ones(8, numpy.float32))
    for name, shape in {"attn_q": (8, 8), "attn_k": (4, 8), "attn_v": (4, 8), "attn_output": (8, 8), "ffn_gate": (8, 8), "ffn_up": (8, 8), "ffn_down": (8, 8)}.items():
        writer.add_tensor(f"blk.0.{name}.weight", tensor(*shape))
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", numpy.ones(8, numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def configs():
    for fixture in range(0, 24, 3):
        for file in range(2):
            write("config", f"values_{fixture}_{file}", bytes([fixture, file, 1]) + bytes([file * 7 + 1, 0, fixture]) + bytes([9, 0, 4]))
    write("config", "raw", bytes([0, 0, 0]) + b'{"model_type":"llama","hidden_size":64,"num_attention_heads":0}')


def tokenizers():
    base = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
            "pre_tokenizer": None, "post_processor": None, "decoder": None}
    words = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "the": 3, "cat": 4, "##s": 5, "sleep": 6}
    special = lambda id, text: {"id": id, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
                                "normalized": False, "special": True}
    bert = base | {
        "added_tokens": [special(0, "[UNK]"), special(1, "[CLS]"), special(2, "[SEP]")],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": words},
    }
    bytes_ = base | {
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFKC"}, {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "\\p{L}+|\\p{N}{1,3}"}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": {"a": 0, "t": 1, "at": 2, "c": 3, "cat": 4}, "merges": ["a t", "c at"]},
    }
    unigram = base | {
        "normalizer": {"type": "Prepend", "prepend": "\u2581"},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": True,
                  "vocab": [["<unk>", 0.0], ["\u2581", -1.0], ["the", -2.5], ["<0x0A>", -6.0]]},
    }
    for name, content in {"bert": bert, "byte_level": bytes_, "unigram": unigram}.items():
        write("tokenizer", name, json.dumps(content, ensure_ascii=False))


def hubs():
    commit, content = "a" * 40, b'{"model_type":"llama"}'
    etag = hashlib.sha256(content).hexdigest()
    answer = lambda status, headers, body=b"": (
        f"HTTP/1.1 {status}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
    ).encode() + body
    known = {"x-repo-commit": commit, "etag": f'"{etag}"', "content-length": len(content), "connection": "close"}
    head, whole = answer("200 OK", known), answer("200 OK", known, content)
    missing = answer("404 Not Found", {"x-repo-commit": commit, "content-length": 0, "connection": "close"})
    elsewhere = known | {"location": "http://foreign.test/file", "x-linked-etag": etag, "x-linked-size": len(content)}
    inputs = {
        "found": [head, whole, missing],
        "missing": [missing, missing, missing],
        "elsewhere": [answer("302 Found", elsewhere), answer("302 Found", elsewhere), whole],
        "relative": [answer("307 Temporary", {"location": "/other", "connection": "close"}), head, whole],
        "outside": [answer("200 OK", known | {"etag": '"../../outside"'}), whole],
        "commit": [answer("200 OK", known | {"x-repo-commit": "../../../outside"}), whole],
        "backslash": [answer("302 Found", {"location": "/\\foreign.test/a", "connection": "close"}), head, whole],
        "large": [answer("200 OK", known | {"content-length": 1 << 40}), whole],
        "denied": [answer("401 Unauthorized", {"connection": "close"}), answer("429 Slow", {"retry-after": "9e9"})],
    }
    for name, answers in inputs.items():
        write("hub", name, b"\x1e".join(answers))


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    images()
    texts()
    weights()
    pickles()
    ggufs()
    configs()
    tokenizers()
    hubs()


if __name__ == "__main__":
    main()
