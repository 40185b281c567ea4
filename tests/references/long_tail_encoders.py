"""Writes the tiny encoders of tests/fixtures/transformers_text_embedding, with sentence-transformers' vectors beside them.

They are families that candle-transformers computes. Folders and `expected.json` are as text_embedding.py writes them, but
the configurations have the keys that published repositories have. Call:

    python long_tail_encoders.py [FAMILY ...]

The trainer of Unigram tokenizers breaks ties by chance, so that a new run gives other tokens, and with them other vectors.

Needs the PyPI packages torch, transformers, tokenizers, safetensors and sentence-transformers.
"""

import math
import sys
from pathlib import Path

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from text_embedding import (
    HEADS, LAYERS, LONGEST, MIDDLE, VOCABULARY, WIDTH, Folder, by_sentence_transformers, randomize, template, train,
)

ROOT = Path(__file__).resolve().parent.parent / "fixtures" / "transformers_text_embedding"


def sentence_pieces(special: list[str], single: str) -> Tokenizer:
    """SentencePiece as converted for T5 and DeBERTa."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    unknown = next(token for token in special if "unk" in token.lower())
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY, special_tokens=special, unk_token=unknown, show_progress=False
    )
    return template(train(tokenizer, trainer), single)


T5_SPECIAL = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def t5(name: str, seed: int, **settings) -> Folder:
    """The encoder of T5, its configuration that of the whole model."""
    folder = Folder(ROOT, name)
    folder.json("config.json", {
        "architectures": ["T5EncoderModel"], "d_ff": MIDDLE, "d_kv": 12, "d_model": WIDTH, "decoder_start_token_id": 0,
        "dropout_rate": 0.1, "eos_token_id": 1, "gradient_checkpointing": False, "initializer_factor": 1.0,
        "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06, "model_type": "t5", "n_positions": 512,
        "num_decoder_layers": LAYERS, "num_heads": HEADS, "num_layers": LAYERS, "output_past": True, "pad_token_id": 0,
        "relative_attention_num_buckets": 32, "torch_dtype": "float32", "transformers_version": "4.11.3",
        "use_cache": True, "vocab_size": VOCABULARY, **settings,
    })
    model = randomize(transformers.T5EncoderModel(transformers.AutoConfig.from_pretrained(folder.path)), seed)
    with torch.no_grad():
        for part, tensor in model.named_parameters():
            if part.endswith(("q.weight", "k.weight")):
                # T5 does not divide by the square root of the size of a head.
                tensor /= math.sqrt(WIDTH)
    # The embedding has one name in published files.
    folder.weights({part: tensor for part, tensor in model.named_parameters() if part != "encoder.embed_tokens.weight"})
    folder.tokenizer(sentence_pieces(["<pad>", "</s>", "<unk>"], "$A </s>"), T5_SPECIAL, 512)
    folder.json("sentence_bert_config.json", {"max_seq_length": LONGEST, "do_lower_case": False})
    return folder


def sentence_t5() -> None:
    """As sentence-t5-base and gtr-t5-base: a matrix after the mean, then unit length."""
    folder = t5("sentence_t5", 1, feed_forward_proj="relu")
    folder.modules(("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize"))
    folder.pooling("mean")
    folder.dense("2_Dense", 24, 2, bias=False)
    by_sentence_transformers(folder)


def t5_gated() -> None:
    """The form of T5 1.1 and of Flan-T5, with a gated network, and its distances told."""
    folder = t5("t5_gated", 3, feed_forward_proj="gated-gelu", relative_attention_max_distance=40,
                tie_word_embeddings=False)
    folder.modules(("1_Pooling", "Pooling"))
    folder.pooling("mean")
    by_sentence_transformers(folder)


DEBERTA_SPECIAL = {
    "bos_token": "[CLS]", "eos_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]",
    "sep_token": "[SEP]", "mask_token": "[MASK]",
}


def deberta_v3() -> None:
    """DeBERTa-v3: positions in buckets, of which the texts go beyond the exact ones."""
    folder = Folder(ROOT, "deberta_v3")
    folder.json("config.json", {
        "model_type": "deberta-v2", "architectures": ["DebertaV2Model"], "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": WIDTH, "initializer_range": 0.02,
        "intermediate_size": MIDDLE, "max_position_embeddings": 128, "relative_attention": True, "position_buckets": 16,
        "norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": "p2c|c2p", "layer_norm_eps": 1e-7,
        "max_relative_positions": -1, "position_biased_input": False, "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS, "type_vocab_size": 0, "vocab_size": VOCABULARY, "pad_token_id": 0,
    })
    model = randomize(transformers.DebertaV2Model(transformers.AutoConfig.from_pretrained(folder.path)), 4)
    folder.weights(dict(model.named_parameters()))
    tokenizer = sentence_pieces(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"], "[CLS] $A [SEP]")
    folder.tokenizer(tokenizer, DEBERTA_SPECIAL, 512)
    folder.json("sentence_bert_config.json", {"max_seq_length": LONGEST, "do_lower_case": False})
    folder.modules(("1_Pooling", "Pooling"))
    folder.pooling("mean")
    by_sentence_transformers(folder)


FAMILIES = [sentence_t5, t5_gated, deberta_v3]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for family in FAMILIES:
        if not sys.argv[1:] or family.__name__ in sys.argv[1:]:
            family()
