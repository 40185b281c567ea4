"""Makes tiny random encoders of BERT's kind with vectors of distances in place of absolute positions, and what the reference
implementation makes of texts: `position_embedding_type` relative_key (Shaw et al., 2018) and relative_key_query (Huang et
al., 2020, method 4). Newer versions of transformers leave both out of BERT, ELECTRA and RoBERTa. Call:

    python relative_positions.py FIXTURES

where FIXTURES is the folder with the models of `text_embedding.py`, whose texts and tokenizers are taken.

Needs the PyPI packages torch, transformers below 4.50 (4.44.2 was used), tokenizers and safetensors.
"""

import json
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn

# More than a block of attention's queries.
LONGEST = 300
SIZES = {
    "vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": LONGEST, "attn_implementation": "eager",
}


def randomize(model: nn.Module, seed: int) -> nn.Module:
    """Numbers of 16 bits, so large that every part of the computation shows in the result."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "LayerNorm.weight" in name:
                noise = 1 + 0.3 * noise
            elif "embedding" not in name:
                noise = 0.25 * noise
            parameter.copy_(noise.half().float())
    return model.eval()


def write(root: Path, name: str, model: nn.Module, tokenizer_of: str, pooling: str) -> None:
    folder, other = root / name, root / tokenizer_of
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    model.config.save_pretrained(folder)
    tensors = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for file in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(other / file, folder / file)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds)
    ]
    (folder / "1_Pooling").mkdir()
    files = {
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": 32, f"pooling_mode_{pooling}": True},
        "sentence_bert_config.json": {"max_seq_length": LONGEST, "do_lower_case": False},
    }
    for file, value in files.items():
        (folder / file).write_text(json.dumps(value, indent=1) + "\n")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST)
    texts = [case["text"] for case in json.loads((other / "expected.json").read_text())["cases"] if "embedding" in case]
    texts = list(dict.fromkeys(texts)) + ["The quick brown fox jumps over the lazy dog. " * 40]
    lines = []
    for text in texts:
        ids = tokenizer.encode(text).ids
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        vector = nn.functional.normalize(hidden[0] if pooling == "cls_token" else hidden.mean(0), dim=0)
        line = {"text": text, "embedding": [float(f"{x:.7g}") for x in vector.tolist()]}
        lines.append(json.dumps(line, separators=(",", ":")))
    packages = {name: version(name) for name in ["torch", "tokenizers"]}
    head = {"reference": "transformers", "made_with": {**packages, "transformers": transformers.__version__}}
    cases = ",\n".join(lines)
    (folder / "expected.json").write_text(f'{json.dumps(head)[:-1]}, "cases": [\n{cases}\n]}}\n')
    print(f"{name}: {len(lines)} cases, {sum(file.stat().st_size for file in folder.rglob('*') if file.is_file()) // 1024} KiB")


def main() -> None:
    root = Path(sys.argv[1])
    torch.set_num_threads(1)
    bert = transformers.BertConfig(**SIZES, position_embedding_type="relative_key")
    write(root, "bert_relative_key", randomize(transformers.BertModel(bert), 41), "bert", "mean_tokens")
    special = {"type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    roberta = transformers.XLMRobertaConfig(**SIZES, **special, position_embedding_type="relative_key_query")
    model = transformers.XLMRobertaModel(roberta, add_pooling_layer=False)
    write(root, "xlm_roberta_relative_key_query", randomize(model, 42), "xlm_roberta", "cls_token")


if __name__ == "__main__":
    main()
