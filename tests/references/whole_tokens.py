"""Writes the tokens that transformers makes of whole texts, as sentence-transformers sets it up, with the tokenizers of the fixtures of text embedding. Call:

    python whole_tokens.py > whole_tokens.json

Needs the PyPI packages torch, transformers, tokenizers, safetensors and sentence-transformers.
"""

import json
from importlib.metadata import version
from pathlib import Path

from sentence_transformers import SentenceTransformer

from text_embedding import FAMILIES, texts

FOLDER = Path(__file__).parent.parent / "fixtures" / "text_embedding"
# Those of which transformers' tokenizer alone decides what stands around a text.
WANTED = ["bert", "distilbert", "roberta", "xlm_roberta", "mpnet", "modernbert", "qwen3", "arctic", "electra", "eurobert"]

known = {family.__name__ for family in FAMILIES}
assert all(name in known for name in WANTED)
cases = []
for name in WANTED:
    tokenizer = SentenceTransformer(str(FOLDER / name), device="cpu", local_files_only=True).tokenizer
    for text in texts():
        ids = tokenizer(text, truncation=False)["input_ids"]
        cases.append({"family": name, "text": text, "ids": ids})
made_with = {name: version(name) for name in ["transformers", "tokenizers"]}
lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
print(f'{{"made_with": {json.dumps(made_with)}, "cases": [\n{lines}\n]}}')
