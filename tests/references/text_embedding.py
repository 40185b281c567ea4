"""Makes tiny random models of every text embedding family, and what the reference implementations make of texts.

Each family gets a folder in the layout of its published repositories (config, tokenizer, weights, the modules of
sentence-transformers) and an `expected.json` with vectors that the Rust tests compare against. Call:

    python text_embedding.py OUTPUT_DIR [FAMILY ...]

Where the reference comes from:
- bert, bert_2019, eurobert, jina_v3, distilbert, roberta, xlm_roberta, bge_m3, mpnet, electra, arctic, embedding_gemma,
  e5_mistral, llama, nomic_bert, modernbert, qwen3: transformers' own models, run by sentence-transformers.
- stella_400m: transformers' own `gte` model, given the settings that stand for the published model's (`new`).
- gte_qwen2, stella_1_5b: transformers' own Qwen2 with `is_causal` off, which is what the published remote code does;
  the end token and the pooling are added here.
- jina_v3_adapters, jina_v5, jina_v5_nano: the same, with the sums of weights and adapters in place of the weights.
- jina_bert, nomic_moe: written down here from the published architecture, since transformers has no such model.
- nv_embed: transformers' own Mistral with `is_causal` off; the latent attention is written down here.

Weights are seeded. The trainer of WordPiece tokenizers breaks ties by chance, so that a new run gives other tokens, and
with them other vectors, to the models that have one.

Needs the PyPI packages torch, transformers, tokenizers, safetensors and sentence-transformers.
"""

import json
import math
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn

from make_references import odd_texts, ordinary_texts, round_digits

# Names that ask for a prompt of another name.
SECOND_NAMES = ["query", "document", "passage"]
PACKAGES = ["sentence-transformers", "transformers", "tokenizers", "torch"]
VOCABULARY = 400
WIDTH = 32
HEADS = 4
MIDDLE = 48
LAYERS = 3
LONGEST = 96


def texts(long: int = 20) -> list[str]:
    """Of one token to more than any model here looks at."""
    return [
        "a",
        "",
        "Hello",
        "The cat sleeps on the warm windowsill.",
        "state-of-the-art, mother-in-law; (well) \"quoted\" - and so on...",
        "  many     spaces\tand\ttabs\nand\nlines ",
        "今天天气很好, Владимир said; مرحبا! \U0001F600",
        "THIS IS ALL IN UPPERCASE AND VERY LOUD",
        ordinary_texts()[7],
        "a <pad> [MASK] in the middle <s> of a sentence [SEP] and </s> a second part",
        "The quick brown fox jumps over the lazy dog. " * long,
    ]


# Tokenizers of the kinds that the families have, trained on the texts of make_references.


def train(tokenizer: Tokenizer, trainer) -> Tokenizer:
    tokenizer.train_from_iterator(ordinary_texts() * 3 + [text[:300] for text in odd_texts()], trainer)
    return tokenizer


def template(tokenizer: Tokenizer, single: str) -> Tokenizer:
    words = [word for word in single.split() if not word.startswith("$")]
    special = [(word, tokenizer.token_to_id(word)) for word in words]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=special)
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    train(tokenizer, trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False))
    return template(tokenizer, "[CLS] $A [SEP]")


def byte_pairs(special: list[str], normalizer=None, split=None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    if split:
        level = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), level])
    tokenizer.pre_tokenizer = level
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    return train(tokenizer, trainer)


def roberta_pairs() -> Tokenizer:
    tokenizer = byte_pairs(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def modern_pairs() -> Tokenizer:
    tokenizer = byte_pairs(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], normalizers.NFC())
    return template(tokenizer, "[CLS] $A [SEP]")


QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def qwen_pairs(closed: bool) -> Tokenizer:
    tokenizer = byte_pairs(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], normalizers.NFC(), QWEN_SPLIT)
    if closed:
        return template(tokenizer, "$A <|endoftext|>")
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def unigram() -> Tokenizer:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    return template(train(tokenizer, trainer), "<s> $A </s>")


def mistral_pairs() -> Tokenizer:
    """As converted from SentencePiece: spaces become `▁`, bytes stand in for what is unknown."""
    special = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY + 256, special_tokens=special + bytes_, show_progress=False)
    train(tokenizer, trainer)
    # The bytes are ordinary words of the published vocabulary, not special ones.
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] in special]
    return template(Tokenizer.from_str(json.dumps(data)), "<s> $A")


# Models.


def randomize(model: nn.Module, seed: int) -> nn.Module:
    """Numbers large enough that every part of the computation shows in the result."""
    generator = torch.Generator().manual_seed(seed)
    norms = (nn.LayerNorm,)
    with torch.no_grad():
        for module in model.modules():
            is_norm = isinstance(module, norms) or "RMSNorm" in type(module).__name__
            for name, parameter in module.named_parameters(recurse=False):
                noise = torch.randn(parameter.shape, generator=generator)
                if is_norm and name == "weight":
                    parameter.copy_(1 + 0.3 * noise)
                elif name == "bias":
                    parameter.copy_(0.2 * noise)
                elif isinstance(module, nn.Embedding):
                    parameter.copy_(noise)
                else:
                    parameter.copy_(0.25 * noise)
    return model.eval()


class Folder:
    """A model's repository."""

    def __init__(self, root: Path, name: str):
        self.path = root / name
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)

    def json(self, name: str, value) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=1, ensure_ascii=True) + "\n", encoding="ascii")

    def tokenizer(self, tokenizer: Tokenizer, special: dict, longest: int | None = LONGEST, **more) -> None:
        text = json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=True, separators=(",", ":"))
        (self.path / "tokenizer.json").write_text(text, encoding="ascii")
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **special, **more}
        if longest:
            config["model_max_length"] = longest
        self.json("tokenizer_config.json", config)

    def modules(self, *modules: tuple[str, str]) -> None:
        """Each a folder and a class, after the transformer."""
        kinds = [("", "Transformer"), *modules]
        self.json("modules.json", [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for index, (path, kind) in enumerate(kinds)
        ])

    def pooling(self, mode: str, width: int = WIDTH, **more) -> None:
        modes = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"]
        flags = {f"pooling_mode_{name}": name.startswith(mode) and name != f"{mode}_sqrt_len_tokens" for name in modes}
        self.json("1_Pooling/config.json", {"word_embedding_dimension": width, **flags, **more})

    def weights(self, tensors: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> None:
        tensors = {name: tensor.detach().to(dtype).contiguous() for name, tensor in tensors.items()}
        save_file(tensors, self.path / "model.safetensors", metadata={"format": "pt"})

    def pickle(self, tensors: dict[str, torch.Tensor], name: str = "pytorch_model.bin", zipped: bool = True) -> None:
        torch.save(tensors, self.path / name, _use_new_zipfile_serialization=zipped)

    def dense(
        self, name: str, outside: int, seed: int, activation: str = "torch.nn.modules.linear.Identity",
        inside: int = WIDTH, bias: bool = True, pickled: bool = False,
    ) -> nn.Linear:
        layer = randomize(nn.Linear(inside, outside, bias=bias), seed)
        self.json(f"{name}/config.json", {
            "in_features": inside, "out_features": outside, "bias": bias, "activation_function": activation,
        })
        tensors = {f"linear.{name}": tensor.detach() for name, tensor in layer.named_parameters()}
        if pickled:
            self.pickle(tensors, f"{name}/pytorch_model.bin")
        else:
            save_file(tensors, self.path / name / "model.safetensors")
        return layer

    def prompts(self, prompts: dict[str, str], default: str | None = None) -> None:
        self.json("config_sentence_transformers.json", {
            "__version__": {"sentence_transformers": "3.0.0"}, "prompts": prompts, "default_prompt_name": default,
            "similarity_fn_name": "cosine",
        })

    def expect(self, reference: str, cases: list[dict]) -> None:
        """`reference` says where the vectors come from."""
        # Three prompts have further names.
        whole = [
            case["embedding"] for case in cases
            if "dimensions" not in case and case.get("named") not in SECOND_NAMES
        ]
        vectors = torch.tensor(whole)
        assert torch.isfinite(vectors).all()
        apart = torch.cdist(vectors, vectors) + 10 * torch.eye(len(vectors))
        size = sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())
        print(f"{self.path.name}: {len(cases)} cases, nearest {apart.min():.3f}, {size // 1024} KiB")
        assert apart.min() > 1e-3, f"{self.path.name}: vectors of different texts are too much alike"
        head = {"reference": reference, "made_with": {name: version(name) for name in PACKAGES}}
        lines = ",\n".join(json.dumps(case, ensure_ascii=True, separators=(",", ":")) for case in cases)
        text = f'{json.dumps(head)[:-1]}, "cases": [\n{lines}\n]}}\n'
        (self.path / "expected.json").write_text(text, encoding="ascii")


def case(text: str, vector: torch.Tensor, **request) -> dict:
    return {"text": text, **request, "embedding": [round_digits(x) for x in vector.tolist()]}


def by_sentence_transformers(
    folder: Folder,
    named: list[str] = (),
    written: list[str] = (),
    dimensions: list[int] = (),
    long: int = 20,
) -> None:
    """Each text alone; the first few again with prompts and with fewer dimensions."""
    model = SentenceTransformer(str(folder.path), device="cpu", local_files_only=True).float()
    all_texts = texts(long)

    def embed(text: str, **options) -> torch.Tensor:
        return model.encode([text], batch_size=1, show_progress_bar=False, convert_to_tensor=True, **options)[0]

    cases = [case(text, embed(text)) for text in all_texts]
    few = [text for text in all_texts if text][1:5]
    for name in named:
        cases += [case(text, embed(text, prompt_name=name), named=name) for text in few]
    for prompt in written:
        cases += [case(text, embed(text, prompt=prompt), written=prompt) for text in few]
    for count in dimensions:
        shorter = [(text, embed(text)[:count]) for text in few]
        cases += [case(text, nn.functional.normalize(vector, dim=0), dimensions=count) for text, vector in shorter]
    folder.expect("sentence-transformers over transformers", cases)


WORD_PIECE_SPECIAL = {
    "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"
}
ROBERTA_SPECIAL = {
    "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>",
    "sep_token": "</s>", "mask_token": "<mask>",
}
QWEN_SPECIAL = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}


def bert(root: Path) -> None:
    """As BGE: the first token's vector, and no tensors of a pooler."""
    folder = Folder(root, "bert")
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=MIDDLE, max_position_embeddings=128,
    )
    randomize(transformers.BertModel(config, add_pooling_layer=False), 1).save_pretrained(folder.path)
    folder.tokenizer(word_piece(), WORD_PIECE_SPECIAL, 512)
    folder.json("sentence_bert_config.json", {"max_seq_length": LONGEST, "do_lower_case": True})
    folder.modules(("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    folder.pooling("cls")
    folder.prompts({"query": "Represent this sentence for searching relevant passages: "})
    by_sentence_transformers(folder, named=["query"], dimensions=[8])


def distilbert(root: Path) -> None:
    """Weights in 16 bits."""
    folder = Folder(root, "distilbert")
    config = transformers.DistilBertConfig(
        vocab_size=VOCABULARY, dim=WIDTH, n_layers=LAYERS, n_heads=HEADS, hidden_dim=MIDDLE, max_position_embeddings=128
    )
    randomize(transformers.DistilBertModel(config), 2).half().save_pretrained(folder.path)
    folder.tokenizer(word_piece(), WORD_PIECE_SPECIAL, 512)
    folder.json("sentence_distilbert_config.json", {"max_seq_length": LONGEST})
    folder.modules(("1_Pooling", "Pooling"))
    folder.pooling("mean")
    by_sentence_transformers(folder)


def roberta(root: Path) -> None:
    """Without a length of its own: the positions say how long a text may be."""
    folder = Folder(root, "roberta")
    config = transformers.RobertaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=MIDDLE, max_position_embeddings=LONGEST + 2, type_vocab_size=1, layer_norm_eps=1e-5,
        pad_token_id=1, bos_token_id=0, eos_token_id=2, hidden_act="gelu_new",
    )
    model = transformers.RobertaForMaskedLM(config)
    randomize(model, 3).save_pretrained(folder.path)
    folder.tokenizer(roberta_pairs(), ROBERTA_SPECIAL, LONGEST)
    folder.json("sentence_roberta_config.json", {"do_lower_case": True, "max_seq_length": LONGEST})
    folder.modules(("1_Pooling", "Pooling"))
    folder.json("1_Pooling/config.json", {
        "embedding_dimension": WIDTH, "pooling_mode": ["max", "mean_sqrt_len_tokens", "weightedmean"],
        "include_prompt": False,
    })
    by_sentence_transformers(folder, written=["search the web: "])


def xlm_roberta(root: Path) -> None:
    """As multilingual E5: prompts that no file of the model defines. In two shards."""
    folder = Folder(root, "xlm_roberta")
    config = transformers.XLMRobertaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=MIDDLE, max_position_embeddings=130, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1,
        bos_token_id=0, eos_token_id=2,
    )
    model = randomize(transformers.XLMRobertaModel(config, add_pooling_layer=False), 4)
    model.save_pretrained(folder.path, max_shard_size="100KB")
    folder.tokenizer(unigram(), ROBERTA_SPECIAL, 512)
    folder.json("sentence_xlm-roberta_config.json", {"max_seq_length": LONGEST, "do_lower_case": False})
    folder.modules(("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    folder.pooling("mean")
    by_sentence_transformers(folder, written=["query: ", "passage: "])


def bge_m3(root: Path) -> None:
    """XLM-RoBERTa with nothing but a file of PyTorch's own."""
    folder = Folder(root, "bge_m3")
    config = transformers.XLMRobertaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=MIDDLE, max_position_embeddings=130, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1,
        bos_token_id=0, eos_token_id=2, architectures=["XLMRobertaModel"],
    )
    config.save_pretrained(folder.path)
    model = randomize(transformers.XLMRobertaModel(config), 17)
    folder.pickle(model.state_dict())
    folder.tokenizer(unigram(), ROBERTA_SPECIAL, 512)
    folder.json("sentence_bert_config.json", {"max_seq_length": LONGEST, "do_lower_case": False})
    folder.modules(("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    folder.pooling("cls")
    by_sentence_transformers(folder)


def bge_m3_outputs(root: Path) -> None:
    """The weights and vectors of tokens of BGE-M3, written down here from its description. Beside the model above."""
    path = root / "bge_m3"
    layers = {"sparse_linear": nn.Linear(WIDTH, 1), "colbert_linear": nn.Linear(WIDTH, WIDTH)}
    for seed, (name, layer) in enumerate(layers.items(), 31):
        randomize(layer, seed)
        if name == "sparse_linear":
            nn.init.constant_(layer.bias, 3.0)
        torch.save(layer.state_dict(), path / f"{name}.pt")
    model = SentenceTransformer(str(path), device="cpu", local_files_only=True)
    transformer, tokenizer = model[0].auto_model, model.tokenizer
    silent = {tokenizer.convert_tokens_to_ids(token) for token in ["<s>", "</s>", "<pad>", "<unk>"]}
    cases = []
    for text in texts():
        encoded = tokenizer(text, truncation=True, max_length=LONGEST, return_tensors="pt")
        with torch.no_grad():
            hidden = transformer(**encoded).last_hidden_state[0]
            weights = torch.relu(layers["sparse_linear"](hidden))[:, 0].tolist()
            vectors = nn.functional.normalize(layers["colbert_linear"](hidden[1:]), dim=-1)
        sparse: dict[int, float] = {}
        for token, weight in zip(encoded["input_ids"][0].tolist(), weights):
            if token not in silent and weight > 0:
                sparse[token] = max(weight, sparse.get(token, 0.0))
        tokens = sorted(sparse)
        # All of a long text would be a megabyte.
        rows = [[round_digits(x) for x in row] for row in vectors.tolist()[:12]]
        cases.append({
            "text": text, "tokens": tokens, "weights": [round_digits(sparse[token]) for token in tokens],
            "count": len(vectors), "vectors": rows,
        })
    assert sum(len(case["tokens"]) for case in cases) > 60
    lines = ",\n".join(json.dumps(case, ensure_ascii=True, separators=(",", ":")) for case in cases)
    (path / "expected_tokens.json").write_text(f'{{"cases": [\n{lines}\n]}}\n', encoding="ascii")


def bert_2019(root: Path) -> None:
    """As BERT's first repositories: PyTorch's older form of files, in shards, with the older names of norms; a tensor
    that is stored turned, one that is a view, integers, and a dense layer with an activation."""
    folder = Folder(root, "bert_2019")
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=MIDDLE, max_position_embeddings=128, architectures=["BertForPreTraining"],
    )
    config.save_pretrained(folder.path)
    model = randomize(transformers.BertModel(config), 18)
    tensors = {}
    for name, tensor in model.state_dict().items():
        for new, old in [("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")]:
            name = name.replace(new, old)
        tensors[f"bert.{name}"] = tensor
    turned, view = "bert.encoder.layer.0.output.dense.weight", "bert.encoder.layer.1.output.dense.weight"
    tensors[turned] = tensors[turned].t().contiguous().t()
    tensors[view] = torch.cat([tensors[view], tensors[view]], 1)[:, :MIDDLE]
    tensors["bert.embeddings.position_ids"] = torch.arange(128)[None]
    names = list(tensors)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, own in shards.items():
        folder.pickle({name: tensors[name] for name in own}, file, zipped=False)
    folder.json("pytorch_model.bin.index.json", {
        "metadata": {}, "weight_map": {name: file for file, own in shards.items() for name in own},
    })
    folder.tokenizer(word_piece(), WORD_PIECE_SPECIAL, 512)
    folder.json("sentence_bert_config.json", {"max_seq_length": LONGEST, "do_lower_case": True})
    folder.modules(("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize"))
    folder.pooling("cls")
    folder.dense("2_Dense", 24, 19, "torch.nn.modules.activation.Tanh", pickled=True)
    by_sentence_transformers(folder)


def electra(root: Path) -> None:
    """As the small ones: embeddings shorter than the rows of the blocks."""
    folder = Folder(root, "electra")
    config = transformers.ElectraConfig(
        vocab_size=VOCABULARY, embedding_size=24, hidden_size=WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, intermediate_size=MIDDLE, max_position_embeddings=128,
    )
    randomize(transformers.ElectraForPreTraining(config), 20).save_pretrained(folder.path)
    folder.tokenizer(word_piece(), WORD_PIECE_SPECIAL, 512)
    folder.json("sentence_bert_config.json", {"max_seq_length": LONGEST, "do_lower_case": False})
    folder.modules(("1_Pooling", "Pooling"))
    folder.pooling("mean")
    by_sentence_transformers(folder)


def arctic(root: Path) -> None:
    """Snowflake Arctic m v2.0: GTE by the name that transformers has for it."""
    folder = Folder(root, "arctic")
    config = transformers.GteConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=MIDDLE, max_position_embeddings=8192, type_vocab_size=1, pad_token_id=1,
    )
    randomize(transformers.GteModel(config), 21).save_pretrained(folder.path)
    folder.tokenizer(unigram(), ROBERTA_SPECIAL, 8192)
    folder.json("sentence_bert_config.json", {"max_seq_length": LONGEST, "do_lower_case": False})
    folder.modules(("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    folder.pooling("cls")
    folder.prompts({"query": "query: "})
    by_sentence_transformers(folder, named=["query"], dimensions=[16])
    written = json.loads((folder.path / "config.json").read_text())
    # In the form of the published model.
    written.pop("rope_parameters")
    folder.json("config.json", {
        **written, "rope_theta": 160000, "rope_scaling": None, "layer_norm_type": "layer_norm", "pack_qkv": True,
        "position_embedding_type": "rope", "logn_attention_scale": False,
    })


def embedding_gemma(root: Path) -> None:
    """Tokens see all of their text, in most layers a window of it; two dense layers without biases."""
    folder = Folder(root, "embedding_gemma")
    config = transformers.Gemma3TextConfig(
        vocab_size=VOCABULARY + 256, hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=HEADS,
        num_key_value_heads=1, head_dim=16, intermediate_size=MIDDLE, max_position_embeddings=600,
        query_pre_attn_scalar=16, sliding_window=20, use_bidirectional_attention=True, sliding_window_pattern=3,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )
    model = randomize(transformers.Gemma3TextModel(config), 22)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # These are factors less 1.
            if name.endswith("norm.weight"):
                parameter.sub_(1)
    model.save_pretrained(folder.path)
    tokenizer = mistral_pairs()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    folder.tokenizer(template(tokenizer, "<s> $A </s>"), special, 600)
    folder.json("sentence_bert_config.json", {"max_seq_length": 600, "do_lower_case": False})
    folder.modules(
        ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Dense", "Dense"), ("4_Normalize", "Normalize")
    )
    folder.pooling("mean")
    folder.dense("2_Dense", 64, 23, bias=False)
    folder.dense("3_Dense", WIDTH, 24, inside=64, bias=False)
    folder.prompts({"query": "task: search result | query: ", "document": "title: none | text: "})
    by_sentence_transformers(folder, named=["query", "document"], dimensions=[16], long=20)


def e5_mistral(root: Path) -> None:
    """A plain decoder of which the last token's vector is taken, with a window that is smaller than the texts."""
    folder = Folder(root, "e5_mistral")
    config = transformers.MistralConfig(
        vocab_size=VOCABULARY + 256, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=2, intermediate_size=MIDDLE, max_position_embeddings=256, rms_norm_eps=1e-5,
        sliding_window=24, bos_token_id=1, eos_token_id=2,
    )
    randomize(transformers.MistralModel(config), 25).save_pretrained(folder.path)
    tokenizer = template(mistral_pairs(), "<s> $A </s>")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    folder.tokenizer(tokenizer, special, LONGEST)
    folder.modules(("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    folder.pooling("lasttoken")
    by_sentence_transformers(folder, written=["Instruct: Find the same\nQuery: "])


def llama(root: Path) -> None:
    """A plain decoder whose tokens see everything, by its configuration, and which is pooled by mean."""
    folder = Folder(root, "llama")
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY + 256, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=2, intermediate_size=MIDDLE, max_position_embeddings=256, rms_norm_eps=1e-5,
        bos_token_id=1, eos_token_id=2,
    )
    config.is_causal = False
    randomize(transformers.LlamaModel(config), 26).save_pretrained(folder.path)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    folder.tokenizer(mistral_pairs(), special, LONGEST)
    folder.modules(("1_Pooling", "Pooling"),)
    folder.pooling("mean")
    by_sentence_transformers(folder)


def eurobert(root: Path) -> None:
    """In the form of the published files, with one head of keys for each of queries and with biases; longer texts than
    a block of attention."""
    folder = Folder(root, "eurobert")
    config = transformers.EuroBertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=MIDDLE, max_position_embeddings=600, mlp_bias=True, attention_bias=True, pad_token_id=0,
        bos_token_id=2, eos_token_id=3, mask_token_id=4, rope_parameters={"rope_type": "default", "rope_theta": 250000.0},
    )
    randomize(transformers.EuroBertForMaskedLM(config), 28).save_pretrained(folder.path)
    folder.tokenizer(modern_pairs(), WORD_PIECE_SPECIAL, 600)
    folder.modules(("1_Pooling", "Pooling"))
    folder.pooling("mean")
    by_sentence_transformers(folder, long=60)
    written = json.loads((folder.path / "config.json").read_text())
    written.pop("rope_parameters")
    folder.json("config.json", {**written, "rope_theta": 250000.0, "rope_scaling": None, "clf_pooling": "late"})


def jina_v3(root: Path) -> None:
    """In the names of the published files. Longer texts than a block of attention."""
    folder = Folder(root, "jina_v3")
    config = transformers.JinaEmbeddingsV3Config(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=MIDDLE, max_position_embeddings=602, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )
    randomize(transformers.JinaEmbeddingsV3Model(config), 29).save_pretrained(folder.path)
    folder.tokenizer(unigram(), ROBERTA_SPECIAL, 600)
    folder.json("sentence_bert_config.json", {"max_seq_length": 600, "do_lower_case": False})
    folder.modules(("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    folder.pooling("mean")
    folder.prompts({"retrieval.query": "Represent the query for retrieving evidence documents: "})
    by_sentence_transformers(folder, named=["retrieval.query"], dimensions=[16], long=60)


def jina_v3_adapters(root: Path) -> None:
    """As Jina Embeddings v3 is published: with low-rank adapters for three tasks beside each matrix and table, which the
    published code adds to them. The reference has the sums in their place."""
    folder = Folder(root, "jina_v3_adapters")
    rank, alpha = 2, 3.0
    tasks = {"retrieval.query": "Represent the query: ", "retrieval.passage": "Represent the document: ", "separation": ""}
    config = transformers.JinaEmbeddingsV3Config(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS,
        intermediate_size=MIDDLE, max_position_embeddings=102, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )
    randomize(transformers.JinaEmbeddingsV3Model(config), 43).save_pretrained(folder.path)
    base = {name: tensor.half().float() for name, tensor in load_file(folder.path / "model.safetensors").items()}
    generator = torch.Generator().manual_seed(44)
    written, merged = {}, [dict(base) for _ in tasks]
    for name, tensor in base.items():
        layer = name.removesuffix(".weight")
        if tensor.dim() != 2:
            written[f"roberta.{name}"] = tensor
            continue
        # Of a table the first matrix has a row for each entry.
        out, into = tensor.shape
        shapes = [(out, rank), (rank, into)] if "embeddings" in name else [(rank, into), (out, rank)]
        first, second = ((0.3 * torch.randn(len(tasks), *shape, generator=generator)).half().float() for shape in shapes)
        written |= {
            f"roberta.{layer}.parametrizations.weight.original": tensor,
            f"roberta.{layer}.parametrizations.weight.0.lora_A": first,
            f"roberta.{layer}.parametrizations.weight.0.lora_B": second,
        }
        for task, tensors in enumerate(merged):
            product = first[task] @ second[task] if "embeddings" in name else second[task] @ first[task]
            tensors[name] = tensor + product * alpha / rank
    folder.tokenizer(unigram(), ROBERTA_SPECIAL, 100)
    folder.json("sentence_bert_config.json", {"max_seq_length": 100, "do_lower_case": False})
    folder.modules(("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    folder.pooling("mean")
    folder.prompts({name: text for name, text in tasks.items() if name != "separation"})

    def embed(tensors: dict, given: list[str]) -> list[torch.Tensor]:
        folder.weights(tensors)
        model = SentenceTransformer(str(folder.path), device="cpu", local_files_only=True).float()
        return [model.encode([text], show_progress_bar=False, convert_to_tensor=True, prompt="")[0] for text in given]

    cases = [case(text, vector) for text, vector in zip(texts(), embed(base, texts()))]
    few = texts()[2:6]
    for (name, prompt), tensors in zip(tasks.items(), merged):
        vectors = embed(tensors, [prompt + text for text in few])
        for named in [name] + {"retrieval.query": ["query"], "retrieval.passage": ["document", "passage"]}.get(name, []):
            cases += [case(text, vector, named=named) for text, vector in zip(few, vectors)]
    folder.weights(written, torch.float16)
    folder.json("config.json", {
        "architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta", "position_embedding_type": "rotary",
        "rotary_emb_base": 20000.0, "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2,
        "num_attention_heads": HEADS, "intermediate_size": MIDDLE, "max_position_embeddings": 102, "type_vocab_size": 1,
        "layer_norm_eps": 1e-5, "hidden_act": "gelu", "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
        "lora_adaptations": list(tasks), "task_instructions": tasks, "lora_rank": rank, "lora_alpha": alpha,
        "lora_dropout_p": 0.0, "lora_main_params_trainable": False, "load_trained_adapters": True, "emb_pooler": None,
        "use_flash_attn": True, "truncate_dim": None, "matryoshka_dimensions": [16, WIDTH],
    })
    folder.expect("sentence-transformers over transformers, with the adapters added to the weights", cases)


def jina_v5(root: Path) -> None:
    """As Jina Embeddings v5 text small is published: Qwen3 with adapters as PEFT writes them, of which one is always on. The
    reference has the sums in place of the weights."""
    config = transformers.Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS, num_key_value_heads=2,
        head_dim=8, intermediate_size=MIDDLE, max_position_embeddings=128, bos_token_id=0, eos_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 3500000.0},
    )
    of_jina_v5(Folder(root, "jina_v5"), transformers.Qwen3Model(config), 45)


def jina_v5_nano(root: Path) -> None:
    """As Jina Embeddings v5 text nano is published: EuroBERT in place of Qwen3, and a module of the repository's own code that
    pools by the last token and normalises."""
    folder = Folder(root, "jina_v5_nano")
    config = transformers.EuroBertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS, intermediate_size=MIDDLE,
        max_position_embeddings=128, pad_token_id=0, bos_token_id=0, eos_token_id=0, mask_token_id=1,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    )
    of_jina_v5(folder, transformers.EuroBertModel(config), 51)
    written = json.loads((folder.path / "config.json").read_text())
    for name in ["rope_parameters", "head_dim", "dtype", "classifier_pooling", "use_cache", "mlp_bias"]:
        written.pop(name, None)
    folder.json("config.json", {
        **written, "rope_theta": 1000000, "rope_scaling": None, "is_decoder": False, "torch_dtype": "float32",
        "bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "pad_token": "<|end_of_text|>",
        "mask_token": "<|mask|>", "hidden_dropout": 0.0,
    })
    folder.json("modules.json", [
        {"idx": 0, "name": "transformer", "path": "", "type": "custom_st.Transformer", "kwargs": ["task", "truncate_dim"]}])
    shutil.rmtree(folder.path / "1_Pooling")


def of_jina_v5(folder: Folder, model: nn.Module, seed: int) -> None:
    randomize(model, seed).save_pretrained(folder.path)
    base = {name: tensor.half().float() for name, tensor in load_file(folder.path / "model.safetensors").items()}
    generator = torch.Generator().manual_seed(seed + 1)
    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    # The second has fewer layers, and another scale.
    tasks = {"retrieval": (layers, 4, False), "text-matching": (["q_proj", "v_proj", "down_proj"], 2, True)}
    merged, adapters = {}, {}
    for task, (targets, rank, by_root) in tasks.items():
        merged[task], adapters[task] = dict(base), {}
        for name, tensor in base.items():
            layer = name.removesuffix(".weight")
            if layer.rsplit(".", 1)[-1] not in targets:
                continue
            first = (0.3 * torch.randn(rank, tensor.shape[1], generator=generator)).half().float()
            second = (0.3 * torch.randn(tensor.shape[0], rank, generator=generator)).half().float()
            path = f"base_model.model.{layer}"
            adapters[task] |= {f"{path}.lora_A.weight": first, f"{path}.lora_B.weight": second}
            merged[task][name] = tensor + second @ first * 3.0 / (math.sqrt(rank) if by_root else rank)
    folder.tokenizer(qwen_pairs(True), QWEN_SPECIAL, 100)
    folder.modules(("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    folder.pooling("lasttoken")
    prompts = {"query": "Query: ", "document": "Document: "}
    folder.prompts(prompts, "document")

    def embed(task: str, prompt: str, given: list[str]) -> list[torch.Tensor]:
        folder.weights(merged[task])
        model = SentenceTransformer(str(folder.path), device="cpu", local_files_only=True).float()
        return [model.encode([text], show_progress_bar=False, convert_to_tensor=True, prompt=prompt)[0] for text in given]

    cases = [case(text, vector) for text, vector in zip(texts(), embed("retrieval", prompts["document"], texts()))]
    few = texts()[2:6]
    for named, task, prompt in [
        ("query", "retrieval", "query"), ("text-matching", "text-matching", "document"),
        ("text-matching.query", "text-matching", "query"),
    ]:
        cases += [case(text, vector, named=named) for text, vector in zip(few, embed(task, prompts[prompt], few))]
    cases += [case(text, vector, written="Find: ") for text, vector in zip(few, embed("retrieval", "Find: ", few))]
    folder.weights(base, torch.float16)
    for task, (targets, rank, by_root) in tasks.items():
        folder.json(f"adapters/{task}/adapter_config.json", {
            "peft_type": "LORA", "task_type": "FEATURE_EXTRACTION", "base_model_name_or_path": "any", "r": rank,
            "lora_alpha": 3, "lora_dropout": 0.1, "bias": "none", "use_dora": False, "use_rslora": by_root,
            "fan_in_fan_out": False, "modules_to_save": None, "target_modules": targets, "inference_mode": True,
            "init_lora_weights": True, "rank_pattern": {}, "alpha_pattern": {}, "layers_pattern": None,
            "layers_to_transform": None, "megatron_config": None,
        })
        save_file(adapters[task], folder.path / f"adapters/{task}/adapter_model.safetensors")
    written = json.loads((folder.path / "config.json").read_text())
    folder.json("config.json", {
        **written, "model_type": "jina_embeddings_v5", "architectures": ["JinaEmbeddingsV5Model"], "task_names": list(tasks),
        "auto_map": {"AutoModel": "modeling_jina_embeddings_v5.JinaEmbeddingsV5Model"},
    })
    folder.expect("sentence-transformers over transformers, with the adapters added to the weights", cases)


def static(root: Path) -> None:
    """As model2vec publishes them: a table in 16 bits with a factor for each token, and no transformer. The tokenizer
    has special tokens, which are left out."""
    folder = Folder(root, "static")
    generator = torch.Generator().manual_seed(27)
    table = torch.randn(VOCABULARY, WIDTH, generator=generator).half()
    factors = torch.rand(VOCABULARY, generator=generator, dtype=torch.float64) + 0.5
    save_file({"embeddings": table, "weights": factors}, folder.path / "model.safetensors")
    folder.tokenizer(word_piece(), WORD_PIECE_SPECIAL, None)
    folder.json("config.json", {
        "model_type": "model2vec", "architectures": ["StaticModel"], "tokenizer_name": "any", "apply_pca": WIDTH,
        "hidden_dim": WIDTH, "seq_length": 1000000, "normalize": True,
    })
    kinds = [(".", "StaticEmbedding"), ("1_Normalize", "Normalize")]
    folder.json("modules.json", [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds)
    ])
    by_sentence_transformers(folder, written=["query: "], dimensions=[16], long=60)


def mpnet_word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
    train(tokenizer, trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False))
    return template(tokenizer, "<s> $A </s>")


def mpnet(root: Path) -> None:
    """As all-mpnet-base-v2. Texts long enough for distances beyond the last bucket, and for more than one block of
    attention's keys."""
    folder = Folder(root, "mpnet")
    config = transformers.MPNetConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=MIDDLE, max_position_embeddings=602, layer_norm_eps=1e-5, pad_token_id=1, bos_token_id=0,
        eos_token_id=2,
    )
    randomize(transformers.MPNetModel(config), 16).save_pretrained(folder.path)
    folder.tokenizer(mpnet_word_piece(), {**ROBERTA_SPECIAL, "unk_token": "[UNK]"}, 512)
    folder.json("sentence_bert_config.json", {"max_seq_length": 600, "do_lower_case": False})
    folder.modules(("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    folder.pooling("mean")
    by_sentence_transformers(folder, long=60)


def nomic_bert(root: Path) -> None:
    """With the names of settings and tensors that the published models have. Long texts, to pass from one block of
    attention to the next."""
    folder = Folder(root, "nomic_bert")
    config = transformers.NomicBertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=MIDDLE, max_position_embeddings=700, rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
    )
    model = randomize(transformers.NomicBertModel(config), 5)
    model.save_pretrained(folder.path)
    folder.tokenizer(word_piece(), WORD_PIECE_SPECIAL, 700)
    folder.json("sentence_bert_config.json", {"max_seq_length": 700, "do_lower_case": False})
    folder.modules(("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    folder.pooling("mean")
    folder.prompts({"search_query": "search_query: ", "search_document": "search_document: "}, "search_document")
    by_sentence_transformers(folder, named=["search_query"], written=[""], dimensions=[16], long=80)
    folder.json("config.json", {
        "architectures": ["NomicBertModel"], "model_type": "nomic_bert", "vocab_size": VOCABULARY, "n_embd": WIDTH,
        "n_layer": LAYERS, "n_head": HEADS, "n_inner": MIDDLE, "n_positions": 700, "type_vocab_size": 2,
        "activation_function": "swiglu", "layer_norm_epsilon": 1e-12, "rotary_emb_base": 1000,
        "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False, "rotary_scaling_factor": None,
        "max_trained_positions": 2048, "qkv_proj_bias": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False,
        "prenorm": False, "parallel_block": False, "use_rms_norm": None, "causal": False,
        "matryoshka_dimensions": [8, 16],
    })


def modernbert(root: Path) -> None:
    """Weights in bf16; a window far smaller than the texts, and texts longer than a block of attention."""
    folder = Folder(root, "modernbert")
    config = transformers.ModernBertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=HEADS,
        intermediate_size=MIDDLE, max_position_embeddings=600, local_attention=16, pad_token_id=0, bos_token_id=2,
        eos_token_id=3, cls_token_id=2, sep_token_id=3, global_attn_every_n_layers=3,
    )
    model = randomize(transformers.ModernBertModel(config), 6).to(torch.bfloat16)
    model.save_pretrained(folder.path)
    folder.tokenizer(modern_pairs(), WORD_PIECE_SPECIAL, 600)
    folder.modules(("1_Pooling", "Pooling"))
    folder.pooling("mean")
    by_sentence_transformers(folder, long=60)
    written = json.loads((folder.path / "config.json").read_text())
    # In the older form of the published models.
    for name in ["layer_types", "rope_parameters"]:
        written.pop(name, None)
    folder.json("config.json", {
        **written, "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0
    })


# What transformers has no model for, or no model with these settings.


def token_ids(tokenizer: Tokenizer, text: str, longest: int, end: int | None = None) -> list[int]:
    tokenizer.enable_truncation(longest - (end is not None))
    return tokenizer.encode(text).ids + ([] if end is None else [end])


def manual(folder: Folder, reference: str, named: dict[str, str], embed, prompts: list[dict]) -> None:
    """`embed(text, prompt)` for each text alone, and for a few with prompts; `named` are those of the model's files."""
    with torch.no_grad():
        cases = [case(text, embed(text, "")) for text in texts()]
        for prompt in prompts:
            words = prompt.get("written") or named[prompt["named"]]
            cases += [case(text, embed(text, words), **prompt) for text in texts()[3:6]]
    folder.expect(reference, cases)


# A number of heads that is no power of two, for the slopes.
JINA_WIDTH, JINA_HEADS = 36, 6


class JinaLayer(nn.Module):
    """One layer of Jina BERT v2, in the names of its published weights."""

    def __init__(self):
        super().__init__()
        self.attention = nn.ModuleDict({
            "self": nn.ModuleDict({name: nn.Linear(JINA_WIDTH, JINA_WIDTH) for name in ["query", "key", "value"]}),
            "output": nn.ModuleDict({"dense": nn.Linear(JINA_WIDTH, JINA_WIDTH), "LayerNorm": nn.LayerNorm(JINA_WIDTH, eps=1e-12)}),
        })
        self.mlp = nn.ModuleDict({
            "gated_layers": nn.Linear(JINA_WIDTH, 2 * MIDDLE, bias=False), "wo": nn.Linear(MIDDLE, JINA_WIDTH),
            "layernorm": nn.LayerNorm(JINA_WIDTH, eps=1e-12),
        })

    def forward(self, hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        parts = [self.attention["self"][name](hidden) for name in ["query", "key", "value"]]
        query, key, value = (part.view(-1, JINA_HEADS, JINA_WIDTH // JINA_HEADS).transpose(0, 1) for part in parts)
        scores = query @ key.transpose(1, 2) / math.sqrt(JINA_WIDTH // JINA_HEADS) + bias
        mixed = (scores.softmax(-1) @ value).transpose(0, 1).reshape(-1, JINA_WIDTH)
        output = self.attention["output"]
        hidden = output["LayerNorm"](output["dense"](mixed) + hidden)
        gate, passed = self.mlp["gated_layers"](hidden).chunk(2, -1)
        return self.mlp["layernorm"](self.mlp["wo"](nn.functional.gelu(gate) * passed) + hidden)


def alibi_slopes(heads: int) -> list[float]:
    """Press et al., 2022: a geometric row; between powers of two every other slope of the next larger one."""
    if math.log2(heads).is_integer():
        first = 2.0 ** (-(2.0 ** -(math.log2(heads) - 3)))
        return [first ** (index + 1) for index in range(heads)]
    power = 2 ** math.floor(math.log2(heads))
    return alibi_slopes(power) + alibi_slopes(2 * power)[0::2][: heads - power]


class JinaBert(nn.Module):
    def __init__(self):
        super().__init__()
        self.embeddings = nn.ModuleDict({
            "word_embeddings": nn.Embedding(VOCABULARY, JINA_WIDTH), "token_type_embeddings": nn.Embedding(2, JINA_WIDTH),
            "LayerNorm": nn.LayerNorm(JINA_WIDTH, eps=1e-12),
        })
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(JinaLayer() for _ in range(LAYERS))})

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        place = torch.arange(len(ids))
        distance = (place[None, :] - place[:, None]).abs()
        bias = -torch.tensor(alibi_slopes(JINA_HEADS))[:, None, None] * distance
        words = self.embeddings["word_embeddings"](ids) + self.embeddings["token_type_embeddings"].weight[0]
        hidden = self.embeddings["LayerNorm"](words)
        for layer in self.encoder["layer"]:
            hidden = layer(hidden, bias)
        return hidden


def jina_bert(root: Path) -> None:
    folder = Folder(root, "jina_bert")
    model = randomize(JinaBert(), 7)
    folder.weights(model.state_dict())
    folder.json("config.json", {
        "architectures": ["JinaBertForMaskedLM"], "model_type": "bert", "vocab_size": VOCABULARY, "hidden_size": JINA_WIDTH,
        "num_hidden_layers": LAYERS, "num_attention_heads": JINA_HEADS, "intermediate_size": MIDDLE,
        "hidden_act": "gelu", "max_position_embeddings": 8192, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0,
        "position_embedding_type": "alibi", "feed_forward_type": "geglu", "emb_pooler": "mean",
    })
    tokenizer = word_piece()
    folder.tokenizer(tokenizer, WORD_PIECE_SPECIAL, 2**31 - 1)
    folder.json("sentence_bert_config.json", {"max_seq_length": LONGEST, "do_lower_case": False})
    folder.modules(("1_Pooling", "Pooling"))
    folder.pooling("mean", JINA_WIDTH)

    def embed(text: str, prompt: str) -> torch.Tensor:
        return model(torch.tensor(token_ids(tokenizer, prompt + text, LONGEST))).mean(0)

    manual(folder, "re-implemented in text_embedding.py", {}, embed, [{"written": "query: "}])


class NomicExperts(nn.Module):
    """A mixture of dense experts of Nomic Embed v2, in the names of its published weights: matrices of all experts one
    below the other, and one bias on the sum."""

    COUNT, CHOSEN = 4, 2

    def __init__(self):
        super().__init__()
        self.router = nn.ModuleDict({"layer": nn.Linear(WIDTH, self.COUNT, bias=False)})
        self.experts = nn.Module()
        self.experts.mlp = nn.Module()
        for name in ["w1", "w2"]:
            self.experts.mlp.register_parameter(name, nn.Parameter(torch.zeros(self.COUNT * MIDDLE, WIDTH)))
        self.experts.bias = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.router["layer"](hidden).softmax(-1).topk(self.CHOSEN)
        up, down = (matrix.view(self.COUNT, MIDDLE, WIDTH) for matrix in [self.experts.mlp.w1, self.experts.mlp.w2])
        rows = []
        for row, row_weights, row_chosen in zip(hidden, weights, chosen):
            outputs = [nn.functional.gelu(up[expert] @ row) @ down[expert] for expert in row_chosen]
            rows.append(sum(weight * output for weight, output in zip(row_weights, outputs)) + self.experts.bias)
        return torch.stack(rows)


class NomicLayer(nn.Module):
    """One layer of Nomic Embed v2."""

    def __init__(self, has_experts: bool):
        super().__init__()
        self.attn = nn.ModuleDict({"Wqkv": nn.Linear(WIDTH, 3 * WIDTH), "out_proj": nn.Linear(WIDTH, WIDTH)})
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-5), nn.LayerNorm(WIDTH, eps=1e-5)
        dense = nn.ModuleDict({"fc1": nn.Linear(WIDTH, MIDDLE), "fc2": nn.Linear(MIDDLE, WIDTH)})
        self.has_experts, self.mlp = has_experts, NomicExperts() if has_experts else dense

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        size = WIDTH // HEADS
        parts = self.attn["Wqkv"](hidden).chunk(3, -1)
        query, key, value = (part.view(-1, HEADS, size).transpose(0, 1) for part in parts)
        angles = torch.arange(len(hidden))[:, None] / 10000.0 ** (torch.arange(0, size, 2) / size)
        cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
        turned = lambda rows: torch.cat([-rows[..., size // 2 :], rows[..., : size // 2]], -1)
        query, key = (rows * cos + turned(rows) * sin for rows in [query, key])
        weights = (query @ key.transpose(1, 2) / math.sqrt(size)).softmax(-1)
        mixed = (weights @ value).transpose(0, 1).reshape(-1, WIDTH)
        hidden = self.norm1(self.attn["out_proj"](mixed) + hidden)
        if self.has_experts:
            return self.norm2(self.mlp(hidden) + hidden)
        return self.norm2(self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](hidden))) + hidden)


class NomicMoe(nn.Module):
    """Nomic Embed v2: experts in every second layer."""

    def __init__(self):
        super().__init__()
        tables = {"word_embeddings": nn.Embedding(VOCABULARY, WIDTH), "token_type_embeddings": nn.Embedding(1, WIDTH)}
        self.embeddings, self.emb_ln = nn.ModuleDict(tables), nn.LayerNorm(WIDTH, eps=1e-5)
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(NomicLayer(index % 2 == 1) for index in range(4))})

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        words = self.embeddings["word_embeddings"](ids) + self.embeddings["token_type_embeddings"].weight[0]
        hidden = self.emb_ln(words)
        for layer in self.encoder["layers"]:
            hidden = layer(hidden)
        return hidden


def nomic_moe(root: Path) -> None:
    """Nomic Embed v2, in the form of the published files."""
    folder = Folder(root, "nomic_moe")
    model = randomize(NomicMoe(), 30)
    folder.weights(model.state_dict())
    folder.json("config.json", {
        "architectures": ["NomicBertModel"], "model_type": "nomic_bert", "vocab_size": VOCABULARY, "n_embd": WIDTH,
        "n_layer": 4, "n_head": HEADS, "n_inner": MIDDLE, "n_positions": 2048, "type_vocab_size": 1,
        "activation_function": "gelu", "layer_norm_epsilon": 1e-05, "rotary_emb_base": 10000, "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False, "rotary_emb_scale_base": None, "rotary_scaling_factor": None,
        "max_trained_positions": 2048, "qkv_proj_bias": True, "mlp_fc1_bias": True, "mlp_fc2_bias": True,
        "prenorm": False, "parallel_block": False, "use_rms_norm": None, "causal": False, "num_experts": NomicExperts.COUNT,
        "moe_top_k": NomicExperts.CHOSEN, "moe_every_n_layers": 2, "moe_impl": "megablocks", "ffn_div": 1,
        "moe_normalize_expert_weights": False, "moe_resid_pdrop": 0.0, "num_shared_experts": 0,
        "expert_choice_router": False, "router_aux_loss_coef": 0.1, "pad_token_id": 1,
    })
    tokenizer = unigram()
    folder.tokenizer(tokenizer, ROBERTA_SPECIAL, 512)
    folder.json("sentence_bert_config.json", {"max_seq_length": LONGEST, "do_lower_case": False})
    folder.modules(("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    folder.pooling("mean")
    prompts = {"query": "search_query: ", "passage": "search_document: "}
    folder.prompts(prompts)

    def embed(text: str, prompt: str) -> torch.Tensor:
        hidden = model(torch.tensor(token_ids(tokenizer, prompt + text, LONGEST)))
        return nn.functional.normalize(hidden.mean(0), dim=0)

    manual(folder, "re-implemented in text_embedding.py", prompts, embed, [{"named": name} for name in prompts])


STELLA_PROMPTS = {
    "s2p_query": "Instruct: Given a web search query, retrieve relevant passages that answer the query.\nQuery: ",
    "s2s_query": "Instruct: Retrieve semantically similar text.\nQuery: ",
}


def stella_400m(root: Path) -> None:
    """GTE v1.5's architecture, with a dense layer after the pooling. NTK's stretched turns are transformers' linear
    ones over a larger base."""
    folder, factor, theta = Folder(root, "stella_400m"), 2.0, 160000.0
    config = transformers.GteConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=MIDDLE, max_position_embeddings=8192, type_vocab_size=2, pad_token_id=0,
        rope_parameters={
            "rope_type": "linear", "rope_theta": theta * factor, "factor": factor ** (2 / (WIDTH // HEADS)),
        },
    )
    model = randomize(transformers.GteModel(config), 8)
    tensors = {}
    for name, tensor in model.state_dict().items():
        for new, old in [
            ("layers.", "encoder.layer."), ("self_attn.o_proj", "attention.o_proj"),
            ("post_attention_layernorm", "attn_ln"), ("post_mlp_layernorm", "mlp_ln"),
        ]:
            name = name.replace(new, old)
        tensors[f"new.{name}"] = tensor
    for index in range(LAYERS):
        layer = f"new.encoder.layer.{index}."
        for kind in ["weight", "bias"]:
            parts = [tensors.pop(f"{layer}self_attn.{part}_proj.{kind}") for part in "qkv"]
            tensors[f"{layer}attention.qkv_proj.{kind}"] = torch.cat(parts)
        parts = [tensors.pop(f"{layer}mlp.{part}_proj.weight") for part in ["up", "gate"]]
        tensors[f"{layer}mlp.up_gate_proj.weight"] = torch.cat(parts)
    folder.weights(tensors)
    folder.json("config.json", {
        "architectures": ["NewModel"], "model_type": "new", "vocab_size": VOCABULARY, "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": MIDDLE, "hidden_act": "gelu",
        "max_position_embeddings": 8192, "type_vocab_size": 2, "layer_norm_type": "layer_norm",
        "layer_norm_eps": 1e-12, "position_embedding_type": "rope", "rope_theta": theta,
        "rope_scaling": {"factor": factor, "type": "ntk"}, "logn_attention_scale": False,
        "logn_attention_clip1": False, "pack_qkv": True, "unpad_inputs": True, "use_memory_efficient_attention": True,
    })
    tokenizer = word_piece()
    folder.tokenizer(tokenizer, WORD_PIECE_SPECIAL, 512)
    folder.json("sentence_bert_config.json", {"max_seq_length": LONGEST, "do_lower_case": False})
    folder.modules(("1_Pooling", "Pooling"), ("2_Dense_24", "Dense"))
    folder.pooling("mean")
    dense = folder.dense("2_Dense_24", 24, 9)
    folder.prompts(STELLA_PROMPTS)

    def embed(text: str, prompt: str) -> torch.Tensor:
        ids = torch.tensor([token_ids(tokenizer, prompt + text, LONGEST)])
        return dense(model(input_ids=ids).last_hidden_state[0].mean(0))

    prompts = [{"named": name} for name in STELLA_PROMPTS]
    manual(folder, "transformers, model gte", STELLA_PROMPTS, embed, prompts)


def qwen2(folder: Folder, seed: int) -> tuple[nn.Module, Tokenizer]:
    """Qwen2 as GTE and Stella publish it: their own code attends both ways and adds the end token."""
    config = transformers.Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=2, intermediate_size=MIDDLE, max_position_embeddings=256, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}, use_sliding_window=False,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )
    config.is_causal = False
    model = randomize(transformers.Qwen2Model(config), seed)
    folder.json("config.json", {
        "architectures": ["Qwen2ForCausalLM"],
        "auto_map": {"AutoModel": "modeling_qwen.Qwen2Model", "AutoModelForCausalLM": "modeling_qwen.Qwen2ForCausalLM"},
        "model_type": "qwen2", "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": 2, "intermediate_size": MIDDLE, "hidden_act": "silu",
        "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "sliding_window": 256,
        "use_sliding_window": False, "max_window_layers": 2, "tie_word_embeddings": False, "bos_token_id": 0,
        "eos_token_id": 0,
    })
    tokenizer = qwen_pairs(closed=False)
    # The code of the repositories' own adds the end; transformers reads the flag no more where there is a tokenizer.json.
    code = ["tokenization_qwen.Qwen2Tokenizer", "tokenization_qwen.Qwen2TokenizerFast"]
    folder.tokenizer(tokenizer, QWEN_SPECIAL, 256, add_eos_token=True, auto_map={"AutoTokenizer": code})
    folder.json("sentence_bert_config.json", {"max_seq_length": LONGEST, "do_lower_case": False})
    return model, tokenizer


def gte_qwen2(root: Path) -> None:
    folder = Folder(root, "gte_qwen2")
    model, tokenizer = qwen2(folder, 10)
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    folder.weights({**tensors, "lm_head.weight": torch.zeros(VOCABULARY, WIDTH)}, torch.float32)
    folder.modules(("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    folder.pooling("lasttoken")
    prompts = {"query": STELLA_PROMPTS["s2p_query"]}
    folder.prompts(prompts)

    def embed(text: str, prompt: str) -> torch.Tensor:
        ids = torch.tensor([token_ids(tokenizer, prompt + text, LONGEST, end=0)])
        return nn.functional.normalize(model(input_ids=ids).last_hidden_state[0, -1], dim=0)

    task = "Instruct: Find the same thing said otherwise\nQuery: "
    manual(folder, "transformers, Qwen2 with is_causal off", prompts, embed, [{"named": "query"}, {"written": task}])


def qwen2_windows(root: Path) -> None:
    """A decoder whose tokens see some others to either side in all layers but the first, with YaRN."""
    folder = Folder(root, "qwen2_windows")
    config = transformers.Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=2, intermediate_size=MIDDLE, max_position_embeddings=32, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0}, use_sliding_window=True,
        sliding_window=3, max_window_layers=1, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )
    config.is_causal = False
    randomize(transformers.Qwen2Model(config), 14).save_pretrained(folder.path)
    written = json.loads((folder.path / "config.json").read_text())
    folder.json("config.json", {**written, "architectures": ["Qwen2ForCausalLM"], "is_causal": False})
    folder.tokenizer(qwen_pairs(closed=True), QWEN_SPECIAL, LONGEST)
    folder.json("sentence_bert_config.json", {"max_seq_length": LONGEST, "do_lower_case": False})
    folder.modules(("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    folder.pooling("mean")
    by_sentence_transformers(folder)


def nomic_bert_native(root: Path) -> None:
    """As transformers saves it, with rotary positions of another form than the published ones."""
    folder = Folder(root, "nomic_bert_native")
    config = transformers.NomicBertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=MIDDLE, max_position_embeddings=64,
        rope_parameters={"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0},
    )
    randomize(transformers.NomicBertModel(config), 15).save_pretrained(folder.path)
    folder.tokenizer(word_piece(), WORD_PIECE_SPECIAL, LONGEST)
    folder.modules(("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    folder.pooling("mean")
    by_sentence_transformers(folder)


def stella_1_5b(root: Path) -> None:
    folder = Folder(root, "stella_1_5b")
    model, tokenizer = qwen2(folder, 11)
    folder.weights({f"model.{name}": tensor for name, tensor in model.state_dict().items()})
    folder.modules(("1_Pooling", "Pooling"), ("2_Dense_48", "Dense"))
    folder.pooling("mean")
    dense = folder.dense("2_Dense_48", 48, 12)
    folder.prompts(STELLA_PROMPTS)

    def embed(text: str, prompt: str) -> torch.Tensor:
        ids = torch.tensor([token_ids(tokenizer, prompt + text, LONGEST, end=0)])
        return dense(model(input_ids=ids).last_hidden_state[0].mean(0))

    prompts = [{"named": name} for name in STELLA_PROMPTS]
    manual(folder, "transformers, Qwen2 with is_causal off", STELLA_PROMPTS, embed, prompts)


def qwen3(root: Path) -> None:
    """Qwen3-Embedding: the tokenizer ends each text; the last token's vector."""
    folder = Folder(root, "qwen3")
    config = transformers.Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=2, head_dim=16, intermediate_size=MIDDLE, max_position_embeddings=256, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}, tie_word_embeddings=True, bos_token_id=0,
        eos_token_id=0, architectures=["Qwen3ForCausalLM"],
    )
    randomize(transformers.Qwen3Model(config), 13).save_pretrained(folder.path)
    written = json.loads((folder.path / "config.json").read_text())
    folder.json("config.json", {**written, "architectures": ["Qwen3ForCausalLM"]})
    folder.tokenizer(qwen_pairs(closed=True), QWEN_SPECIAL, LONGEST, padding_side="left")
    folder.modules(("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    folder.pooling("lasttoken", include_prompt=True)
    folder.prompts({
        "query": "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:",
        "document": "",
    })
    by_sentence_transformers(folder, named=["query"], written=["Instruct: Sort by topic\nQuery:"], dimensions=[16, 8])


class LatentAttention(nn.Module):
    """NV-Embed's pooling: each token asks a fixed set of latent vectors, in the names of the published weights."""

    LATENTS, CROSS_HEADS, CROSS_SIZE = 12, 2, 16

    def __init__(self):
        super().__init__()
        inner = self.CROSS_HEADS * self.CROSS_SIZE
        products = {
            "to_q": nn.Linear(WIDTH, inner, bias=False), "to_kv": nn.Linear(WIDTH, 2 * inner, bias=False),
            "to_out": nn.Linear(inner, WIDTH, bias=False),
        }
        net = nn.Sequential(nn.Linear(WIDTH, 8 * WIDTH), nn.Identity(), nn.Linear(4 * WIDTH, WIDTH))
        self.cross_attend_blocks = nn.ModuleList([
            nn.ModuleDict({
                "norm": nn.LayerNorm(WIDTH), "norm_context": nn.LayerNorm(WIDTH), "fn": nn.ModuleDict(products)
            }),
            nn.ModuleDict({"norm": nn.LayerNorm(WIDTH), "fn": nn.ModuleDict({"net": net})}),
        ])
        self.latents = nn.Parameter(torch.zeros(self.LATENTS, WIDTH))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        cross, feed = self.cross_attend_blocks
        split = lambda rows: rows.view(-1, self.CROSS_HEADS, self.CROSS_SIZE).transpose(0, 1)
        query = split(cross["fn"]["to_q"](cross["norm"](hidden)))
        key, value = map(split, cross["fn"]["to_kv"](cross["norm_context"](self.latents)).chunk(2, -1))
        weights = (query @ key.transpose(1, 2) / math.sqrt(self.CROSS_SIZE)).softmax(-1)
        hidden = cross["fn"]["to_out"]((weights @ value).transpose(0, 1).reshape(len(hidden), -1)) + hidden
        wide, _, narrow = feed["fn"]["net"]
        passed, gate = wide(feed["norm"](hidden)).chunk(2, -1)
        return narrow(passed * nn.functional.gelu(gate)) + hidden


def nv_embed(root: Path) -> None:
    """NV-Embed v2. As its model card has it, the end token is written after the text, and the prompt's tokens are
    left out of the mean."""
    folder = Folder(root, "nv_embed")
    sizes = {
        "vocab_size": VOCABULARY + 256, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": 2, "intermediate_size": MIDDLE, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    }
    config = transformers.MistralConfig(
        **sizes, sliding_window=None, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, bos_token_id=1,
        eos_token_id=2,
    )
    config.is_causal = False
    model, latent = randomize(transformers.MistralModel(config), 14), randomize(LatentAttention(), 15)
    tensors = {f"embedding_model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"latent_attention_model.{name}": tensor for name, tensor in latent.state_dict().items()}
    folder.weights(tensors)
    folder.json("config.json", {
        "architectures": ["NVEmbedModel"], "model_type": "nvembed", "add_eos": True, "add_pad_token": True,
        "is_mask_instruction": True, "mask_type": "b", "padding_side": "right", "hidden_size": WIDTH,
        "latent_attention_config": {
            "model_type": "latent_attention", "num_latents_value": LatentAttention.LATENTS, "latent_dim": WIDTH,
            "hidden_dim": WIDTH, "num_cross_heads": LatentAttention.CROSS_HEADS,
            "cross_dim_head": LatentAttention.CROSS_SIZE, "mult": 4, "output_normalize": True,
        },
        "text_config": {
            "model_type": "bidir_mistral", "architectures": ["MistralModel"], **sizes, "hidden_act": "silu",
            "rope_theta": 10000.0, "sliding_window": 4096, "bos_token_id": 1, "eos_token_id": 2,
            "tie_word_embeddings": False,
        },
    })
    tokenizer = mistral_pairs()
    folder.tokenizer(tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}, 256)
    folder.json("sentence_bert_config.json", {"max_seq_length": LONGEST, "do_lower_case": False})
    folder.modules(("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    folder.pooling("mean", include_prompt=False)
    prompts = {"query": "Instruct: Given a question, retrieve passages\nQuery: "}
    folder.prompts(prompts)

    def embed(text: str, prompt: str) -> torch.Tensor:
        ids = token_ids(tokenizer, prompt + text + "</s>", LONGEST)
        skipped = len(token_ids(tokenizer, prompt, LONGEST)) if prompt else 0
        hidden = latent(model(input_ids=torch.tensor([ids])).last_hidden_state[0])
        return nn.functional.normalize(hidden[skipped:].mean(0), dim=0)

    task = "Instruct: Find the same\nQuery: "
    reference = "transformers, Mistral with is_causal off, and a latent attention re-implemented in text_embedding.py"
    manual(folder, reference, prompts, embed, [{"named": "query"}, {"written": task}])


FAMILIES = [
    bert, bert_2019, distilbert, roberta, xlm_roberta, bge_m3, bge_m3_outputs, mpnet, electra, arctic, embedding_gemma, e5_mistral,
    llama, static, jina_bert, nomic_bert, modernbert, stella_400m, gte_qwen2, stella_1_5b, qwen3, nv_embed,
    qwen2_windows, nomic_bert_native, eurobert, jina_v3, jina_v3_adapters, jina_v5, jina_v5_nano, nomic_moe,
]


def main() -> None:
    root, wanted = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    for family in FAMILIES:
        if not wanted or family.__name__ in wanted:
            family(root)


if __name__ == "__main__":
    main()
