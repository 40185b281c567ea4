"""Writes the tiny decoders of tests/fixtures/text_to_text with transformers' own results beside them.

Each folder is laid out like a published repository: configuration, weights, tokenizer with a chat template,
generation settings. `expected.json` holds prompts as token numbers with 64 greedy tokens each;
`expected.safetensors` the logits (for each prompt after its last token and after all greedy ones, and for one prompt
after every token). Folders that begin with `gguf_` hold a GGUF file instead, its matrices in blocks; their logits are
those of the weights that the blocks stand for. Call:

    python decoders.py [FAMILY ...]

Needs the PyPI packages torch, transformers, tokenizers, safetensors and gguf.
"""

import copy
import json
import math
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import (
    AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers,
)
from transformers import AutoConfig, AutoModelForCausalLM

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "text_to_text"
STEPS = 64
GAP = 1e-3
VOCABULARY = 384

TEXTS = [
    "The cat sleeps on the warm windowsill. How do I reset my password?",
    "An actor owns its state and talks to others only by messages. A supervisor starts it and watches it.",
    "The train to the coast leaves from platform nine in ten minutes, and the rain has not stopped since noon.",
    "She read the letter twice, folded it carefully, and put it back in the drawer without saying a word.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
    "I don't know, and I can't ask. You are a helpful assistant. What is the capital of France? It's Paris!",
    "Café naïve façade, Ångström, über, jalapeño: 0123456789 + 42 = (51) [x] {y} <z>\n\n\tEnd.",
]


def byte_level(special, digits, composed=True, split=None):
    """A byte-level tokenizer as of SmolLM and Qwen, or, without either treatment of its own, as of GPT-2."""
    tokenizer = Tokenizer(models.BPE())
    if split:
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), level])
    elif digits:
        split = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    else:
        if composed:
            tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


# How GPT-4o's tokenizer, and GPT-OSS's, cuts texts into words.
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def sentence_piece(first, special, prefix_space, beginning):
    """A tokenizer as of Llama 2, Mistral, Phi-3 and Gemma: words with their space, bytes for what is unknown."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    scheme = "first" if prefix_space else "never"
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=True)
    size = VOCABULARY - len(first) - 256 - len(special)
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False)
    trained.train_from_iterator([text for text in TEXTS[:6]], trainer)
    learned = json.loads(trained.to_str())["model"]
    words = sorted(learned["vocab"], key=learned["vocab"].get)
    names = first + [f"<0x{byte:02X}>" for byte in range(256)] + words
    vocabulary = {token: index for index, token in enumerate(names)}
    merges = [tuple(merge) for merge in learned["merges"]]
    model = models.BPE(
        vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    steps = [normalizers.Prepend("▁")] if prefix_space else []
    tokenizer.normalizer = normalizers.Sequence(steps + [normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(content=" ", left=1)] if prefix_space else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()] + strip
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in first + special])
    if beginning:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{beginning} $A",
            pair=f"{beginning} $A {beginning} $B",
            special_tokens=[(beginning, tokenizer.token_to_id(beginning))],
        )
    return tokenizer


CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
    "'\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' "
    "}}{%- else %}{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}{%- if message.role == 'user' or message.role == 'assistant' or "
    "(message.role == 'system' and not loop.first) %}{{- '<|im_start|>' + message.role + '\\n' + message.content + "
    "'<|im_end|>' + '\\n' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
QWEN3 = (
    "{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}"
    "{%- endif %}{%- set ns = namespace(last=messages|length - 1) %}{%- for message in messages %}"
    "{%- set content = message.content if message.content is string else '' %}"
    "{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}"
    "{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}"
    "{%- elif message.role == 'assistant' %}{%- if '</think>' in content %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{{- '<|im_start|>assistant\\n' + content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ ' [INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
PHI2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'Instruct: ' + message['content'] + '\\n' }}"
    "{% else %}{{ 'Output: ' + message['content'] + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Output:' }}{% endif %}"
)
PHI3 = (
    "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>\\n' + "
    "message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\\n' + message['content'] + "
    "'<|end|>\\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\\n' + message['content'] + "
    "'<|end|>\\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}"
    "{% else %}{{ eos_token }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
)

HARMONY = (
    "{{- '<|start|>system<|message|>You are a language model.\\nCurrent date: ' + strftime_now('%Y-%m-%d') + "
    "'\\n\\nReasoning: ' + (reasoning_effort if reasoning_effort is defined else 'medium') + "
    "'\\n\\n# Valid channels: analysis, commentary, final.<|end|>' }}"
    "{%- macro developer(text) %}{{- '<|start|>developer<|message|># Instructions\\n\\n' + text + '\\n\\n<|end|>' }}"
    "{%- endmacro %}{%- for message in messages %}{%- if message.role in ['system', 'developer'] %}"
    "{{- developer(message.content) }}{%- elif message.role == 'assistant' %}"
    "{%- if '<|channel|>' in message.content %}{{- raise_exception('The content of a message holds a channel.') }}"
    "{%- endif %}{{- '<|start|>assistant<|channel|>final<|message|>' + message.content }}"
    "{{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{%- else %}"
    "{{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"
)

SIZES = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512, attention_dropout=0.0,
)


def special_of(family):
    """Names of the special tokens: beginning, end (or several), unknown, all."""
    if family.startswith(("llama", "smollm")):
        return "<|im_start|>", ["<|im_end|>"], "<|endoftext|>", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    if family.startswith("gpt_oss"):
        names = ["<|startoftext|>", "<|endoftext|>", "<|return|>", "<|channel|>", "<|start|>", "<|end|>", "<|message|>",
                 "<|call|>"]
        return "<|startoftext|>", ["<|return|>", "<|endoftext|>", "<|call|>"], None, names
    if family.startswith("qwen"):
        names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
        return None, ["<|im_end|>", "<|endoftext|>"], None, names[: 5 if "3" in family else 3]
    if family == "phi2":
        return "<|endoftext|>", ["<|endoftext|>"], "<|endoftext|>", ["<|endoftext|>"]
    if family.startswith("phi"):
        names = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
        return "<s>", ["<|end|>", "<|endoftext|>"], "<unk>", names
    if family.startswith("gemma"):
        return "<bos>", ["<eos>", "<end_of_turn>"], "<unk>", ["<start_of_turn>", "<end_of_turn>"]
    return "<s>", ["</s>"], "<unk>", ["[INST]", "[/INST]"]


def tokenizer_of(family):
    """The tokenizer and the chat template in the family's style."""
    special = special_of(family)[3]
    if family.startswith(("llama", "smollm")):
        return byte_level(special, digits=True), CHATML
    if family.startswith("gpt_oss"):
        return byte_level(special, digits=False, composed=False, split=O200K), HARMONY
    if family.startswith("qwen"):
        return byte_level(special, digits=False), QWEN3 if "3" in family else QWEN
    if family == "phi2":
        return byte_level(special, digits=False, composed=False), PHI2
    if family.startswith("phi"):
        return sentence_piece(["<unk>", "<s>", "</s>"], special, True, None), PHI3
    if family.startswith("gemma"):
        return sentence_piece(["<pad>", "<eos>", "<bos>", "<unk>"], special, False, "<bos>"), GEMMA
    return sentence_piece(["<unk>", "<s>", "</s>"], special, True, "<s>"), MISTRAL


LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
# Windows, positions and clamps so small that each shows. YaRN's ranges have no whole ends, as published.
GPT_OSS = dict(model_type="gpt_oss", head_dim=8, intermediate_size=32, num_local_experts=4, num_experts_per_tok=2,
               sliding_window=8, swiglu_limit=1.0, rope_parameters=dict(
                   rope_type="yarn", rope_theta=10000.0, factor=4.0, beta_fast=32.0, beta_slow=1.0, truncate=False,
                   original_max_position_embeddings=64))
FAMILIES = {
    # SmolLM's shape, tied, with Llama 3.1's stretched rotary embedding.
    "llama": dict(model_type="llama", tie_word_embeddings=True, head_dim=8, rope_parameters=dict(
        LLAMA3, rope_theta=10000.0, original_max_position_embeddings=32)),
    # Biases everywhere, heads of an explicit size, linear scaling, half precision, several files.
    "llama_f16": dict(model_type="llama", attention_bias=True, mlp_bias=True, head_dim=16, rope_parameters=dict(
        rope_type="linear", factor=2.0, rope_theta=5000.0)),
    "qwen2": dict(model_type="qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1,
                  tie_word_embeddings=True, rope_parameters=dict(rope_type="yarn", factor=4.0, rope_theta=1e6,
                                                                 original_max_position_embeddings=64)),
    # As Qwen2.5 is published: its context is that of the pretraining, and YaRN lengthens it. The texts go beyond.
    "qwen2_yarn": dict(model_type="qwen2", num_hidden_layers=2, max_position_embeddings=32,
                       rope_parameters=dict(rope_type="yarn", factor=4.0, rope_theta=1e6, beta_fast=24.0,
                                            attention_factor=0.9)),
    # Frequencies of some pairs alone, in the places that they have among all.
    "mistral_proportional": dict(model_type="mistral", num_hidden_layers=2, head_dim=16, sliding_window=None,
                                 rope_parameters=dict(rope_type="proportional", rope_theta=10000.0, factor=2.0,
                                                      partial_rotary_factor=0.5)),
    "qwen3": dict(model_type="qwen3", head_dim=16, tie_word_embeddings=False,
                  rope_parameters=dict(rope_type="default", rope_theta=1e6)),
    "qwen3_moe": dict(model_type="qwen3_moe", head_dim=8, num_experts=6, num_experts_per_tok=2, norm_topk_prob=True,
                      moe_intermediate_size=32, decoder_sparse_step=1, mlp_only_layers=[1],
                      rope_parameters=dict(rope_type="default", rope_theta=1e6)),
    # Phi-1.5 and Phi-2, with fewer heads of keys than the published ones have.
    "phi2": dict(model_type="phi", rope_parameters=dict(rope_type="default", rope_theta=10000.0,
                                                        partial_rotary_factor=0.5)),
    # Phi-4-mini's shape: long rotary embedding on a part of each head. The longest prompt is long at once, the others
    # grow long.
    "phi3": dict(model_type="phi3", max_position_embeddings=512, original_max_position_embeddings=24,
                 rope_parameters=dict(rope_type="longrope", rope_theta=10000.0, partial_rotary_factor=0.75,
                                      short_factor=[1.0, 1.1, 1.3], long_factor=[1.2, 2.5, 6.0]),
                 bos_token_id=1, eos_token_id=383, pad_token_id=379, tie_word_embeddings=False),
    "mistral": dict(model_type="mistral", head_dim=16, sliding_window=12,
                    rope_parameters=dict(rope_type="default", rope_theta=10000.0)),
    # Two kinds of layers without positions: every other here, and so many that the window matters.
    "smollm3": dict(model_type="smollm3", num_hidden_layers=4, no_rope_layers=[1, 0, 1, 0], tie_word_embeddings=False,
                    use_sliding_window=True, sliding_window=12,
                    rope_parameters=dict(rope_type="default", rope_theta=5e6)),
    "qwen2_moe": dict(model_type="qwen2_moe", num_experts=6, num_experts_per_tok=2, moe_intermediate_size=32,
                      shared_expert_intermediate_size=48, mlp_only_layers=[1], num_hidden_layers=3,
                      rope_parameters=dict(rope_type="default", rope_theta=1e6)),
    # Gated delta nets beside full attention, with keys and values of unlike sizes; one layer without experts.
    "qwen3_next": dict(model_type="qwen3_next", num_hidden_layers=4, head_dim=16, num_experts=6,
                       num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=48,
                       mlp_only_layers=[2], full_attention_interval=2, linear_conv_kernel_dim=4,
                       linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
                       linear_value_head_dim=12, partial_rotary_factor=0.25,
                       rope_parameters=dict(rope_type="default", rope_theta=1e6)),
    # The same net with projections of their own and dense networks, tied; its axes of positions are all a text's.
    "qwen3_5": dict(model_type="qwen3_5_text", num_hidden_layers=4, head_dim=16, tie_word_embeddings=True,
                    full_attention_interval=2, linear_conv_kernel_dim=3, linear_num_key_heads=2,
                    linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
                    partial_rotary_factor=0.5, rope_parameters=dict(
                        rope_type="default", rope_theta=1e6, mrope_interleaved=True, mrope_section=[2, 1, 1])),
    # The same with experts in every layer.
    "qwen3_5_moe": dict(model_type="qwen3_5_moe_text", num_hidden_layers=3, head_dim=16, num_experts=4,
                        num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=48,
                        full_attention_interval=2, linear_conv_kernel_dim=4, linear_num_key_heads=2,
                        linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
                        partial_rotary_factor=0.5, rope_parameters=dict(
                            rope_type="default", rope_theta=1e6, mrope_interleaved=True, mrope_section=[2, 1, 1])),
    # Positions for long texts, as of Phi-3.5-MoE: the longest prompt is long at once, the others grow long.
    "phimoe": dict(model_type="phimoe", num_hidden_layers=2, num_local_experts=4, intermediate_size=32,
                   router_jitter_noise=0.2, attention_bias=True, lm_head_bias=True, sliding_window=24,
                   original_max_position_embeddings=24, rope_parameters=dict(
                       rope_type="longrope", rope_theta=10000.0, short_factor=[1.0, 1.1, 1.3, 1.5],
                       long_factor=[1.2, 2.5, 6.0, 9.0], short_mscale=1.2, long_mscale=1.4,
                       original_max_position_embeddings=24)),
    # Windows in the layers that the file lists.
    "ministral": dict(model_type="ministral", head_dim=16, sliding_window=12,
                      layer_types=["sliding_attention", "full_attention", "sliding_attention"], num_hidden_layers=3,
                      rope_parameters=dict(rope_type="default", rope_theta=1e6)),
    # Queries that grow every sixteen tokens.
    "ministral3": dict(model_type="ministral3", head_dim=16, rope_parameters=dict(
        rope_type="yarn", rope_theta=1e6, factor=16.0, original_max_position_embeddings=16, beta_fast=32.0,
        beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.4)),
    # In 16 bits, as those who quantise it anew publish it, and with the experts in blocks of 4 bits, as it is published.
    "gpt_oss": GPT_OSS,
    "gpt_oss_mxfp4": GPT_OSS,
    "gemma": dict(model_type="gemma", head_dim=16, hidden_act="gelu_pytorch_tanh",
                  rope_parameters=dict(rope_type="default", rope_theta=10000.0)),
    "gemma2": dict(model_type="gemma2", head_dim=16, query_pre_attn_scalar=24, sliding_window=8,
                   attn_logit_softcapping=5.0, final_logit_softcapping=4.0, hidden_activation="gelu_pytorch_tanh",
                   rope_parameters=dict(rope_type="default", rope_theta=10000.0)),
    "gemma3": dict(model_type="gemma3_text", head_dim=16, query_pre_attn_scalar=24, sliding_window=8,
                   num_hidden_layers=7, intermediate_size=32, hidden_activation="gelu_pytorch_tanh",
                   rope_parameters=dict(
                       sliding_attention=dict(rope_type="default", rope_theta=10000.0),
                       full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e6))),
    # Both kinds of layers among those that share keys and values, and tokens beyond the table of layers' inputs.
    "gemma3n": dict(model_type="gemma3n_text", head_dim=16, sliding_window=8, num_hidden_layers=6,
                    intermediate_size=[32, 48, 32, 48, 32, 48], hidden_activation="gelu_pytorch_tanh",
                    layer_types=["sliding_attention", "full_attention"] * 3, num_kv_shared_layers=2,
                    vocab_size_per_layer_input=340, pad_token_id=0, hidden_size_per_layer_input=8, altup_num_inputs=3,
                    laurel_rank=8, activation_sparsity_pattern=[0.8, 0.6, 0.0, 0.0, 0.0, 0.0],
                    rope_parameters=dict(
                        sliding_attention=dict(rope_type="default", rope_theta=10000.0),
                        full_attention=dict(rope_type="default", rope_theta=1e6))),
}
# In GGUF: the type of each family's matrices, and what is unlike the family above.
GGUF = {
    "llama": ("Q8_0", {}),
    "qwen2": ("Q4_0", dict(use_sliding_window=False, rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    "qwen3": ("Q5_1", {}),
    "phi2": ("Q5_0", {}),
    "phi3": ("Q8_0", dict(sliding_window=16)),
    "gemma3": ("Q4_1", dict(query_pre_attn_scalar=16)),
    # Of llama.cpp, which has the ends of YaRN's ranges whole and one bound for all files.
    "gpt_oss": ("Q8_0", dict(swiglu_limit=7.0, rope_parameters=dict(GPT_OSS["rope_parameters"], truncate=True))),
}
# Names of architectures in GGUF, where they are unlike the family's.
ARCHITECTURES = {"gpt_oss": "gpt-oss"}
HALF = {"llama_f16": torch.float16, "mistral": torch.bfloat16, "gpt_oss": torch.bfloat16}
SHARDED = {"llama_f16"}
QUIET = {"ministral", "ministral3", "gemma", "phimoe"}


def randomize(model, seed):
    """Numbers large enough that every part of the computation shows in the results."""
    generator = torch.Generator().manual_seed(seed)
    gemma = "gemma" in model.config.model_type
    # Factors of norms are stored less 1, but for those of gated delta nets.
    plain = model.config.model_type == "gemma3n_text"
    less_one = gemma and not plain or hasattr(model.config, "linear_num_key_heads")
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("A_log"):
                # So small a decay that states remember some ten tokens.
                tensor.copy_(noise - 2.0)
            elif name.endswith("linear_attn.norm.weight"):
                tensor.copy_(1.0 + 0.3 * noise)
            elif plain and ("q_norm" in name or "k_norm" in name):
                # Scores are not scaled.
                tensor.copy_(0.5 + 0.2 * noise)
            elif name.endswith("correct_output_scale"):
                tensor.copy_(1.0 + 0.3 * noise)
            elif gemma and "post_attention" in name:
                # What attention brings has to outweigh the token itself, or texts are one token again and again.
                tensor.copy_(1.5 + 0.5 * noise)
            elif gemma and ("q_proj" in name or "k_proj" in name):
                tensor.copy_(noise * 3.0 / math.sqrt(tensor.shape[-1]))
            elif gemma and ("q_norm" in name or "k_norm" in name):
                tensor.copy_(1.0 + 0.5 * noise)
            elif "norm" in name and not name.endswith("bias"):
                tensor.copy_((0.0 if less_one else 1.0) + 0.3 * noise)
            elif name.endswith("bias"):
                tensor.copy_(0.2 * noise)
            elif "embed_tokens" in name:
                size = 0.05 if model.config.model_type == "gemma" else 0.15 if gemma else 0.35 if model.config.tie_word_embeddings else 1.0
                tensor.copy_(noise * size)
            elif "lm_head" in name:
                tensor.copy_(noise * 0.4)
            else:
                tensor.copy_(noise * 1.2 / math.sqrt(tensor.shape[-1]))


def round_to(model, dtype):
    """Weights as the file will have them; the computation stays in 32 bits."""
    for tensor in model.parameters():
        tensor.data = tensor.data.to(dtype).float()


def mxfp4(values):
    """Numbers, `(..., rows, columns)`, in blocks of 4-bit floats: bytes of two numbers each, and scales."""
    groups = values.reshape(*values.shape[:-1], -1, 32)
    largest = groups.abs().amax(-1, keepdim=True)
    exponent = torch.floor(torch.log2(largest)) - 2
    numbers = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    numbers = torch.cat([numbers, -numbers])
    nearest = (groups / 2.0**exponent)[..., None].sub(numbers).abs().argmin(-1).to(torch.uint8)
    pairs = nearest.reshape(*nearest.shape[:-1], 16, 2)
    return pairs[..., 0] | pairs[..., 1] << 4, (exponent[..., 0] + 127).to(torch.uint8)


def experts_of(model):
    """The experts' matrices with their names. Each has its inputs before its outputs."""
    return [(name, tensor) for name, tensor in model.named_parameters() if "experts" in name and tensor.dim() == 3]


def round_experts(model):
    """Experts as their blocks stand for them; the numbers are those of transformers' own reading of blocks."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    for _, tensor in experts_of(model):
        blocks, scales = mxfp4(tensor.detach().transpose(1, 2).contiguous())
        tensor.data = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).contiguous()


def save_in_blocks(model, folder):
    """The weights with the experts in blocks, and the setting that tells it."""
    tensors = {name: tensor.detach() for name, tensor in model.named_parameters()}
    for name, tensor in experts_of(model):
        blocks, scales = mxfp4(tensors.pop(name).transpose(1, 2).contiguous())
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    file = folder / "config.json"
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    config = {**json.loads(file.read_text()), "quantization_config": settings}
    file.write_text(json.dumps(config, indent=2) + "\n")


@torch.no_grad()
def logits_of(model, tokens):
    """All logits, from a single pass without a cache."""
    return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float()


def greedy(model, prompt, special=frozenset()):
    """64 greedy tokens with the logits behind the last, or nothing where two tokens are too close."""
    tokens = list(prompt)
    for _ in range(STEPS):
        logits = logits_of(model, tokens)[-1]
        best = torch.topk(logits, 2).values
        if (best[0] - best[1]).item() < GAP:
            return None
        tokens.append(int(logits.argmax()))
        # Nobody would keep it: see `answers`.
        made = set(tokens[len(prompt):])
        if special & made or len(tokens) - len(prompt) == STEPS // 3 and len(made) < 5:
            return None
    return tokens[len(prompt):], logits_of(model, tokens)[-1]


def prompts_of(tokenizer):
    """Prompts of unlike lengths, as token numbers."""
    texts = ["The", "The cat sleeps", "How do I reset my password? I don't know.",
             "She read the letter twice, folded it carefully, and put it back in the drawer."]
    prompts = [tokenizer.encode(text).ids for text in texts]
    return [prompts[0][:2], prompts[1][:9], prompts[2][:21], prompts[3][:40]]


def answers(model, prompts, special):
    """Every prompt's greedy continuation, or nothing where the comparison would be weak."""
    found = []
    for prompt in prompts:
        result = greedy(model, prompt, special)
        if result is None or len(set(result[0])) < 10 or special & set(result[0]):
            return None
        found.append(result)
    return found


def seeded(config, prompts, special, rounding):
    """The first seed whose texts vary and whose best tokens are clear at each step."""
    for seed in range(400):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        randomize(model, seed)
        if config.model_type in QUIET:
            # Or a special token ends nearly every text.
            with torch.no_grad():
                model.lm_head.weight[sorted(special)] = 0.0
        rounding(model)
        found = answers(model, prompts, special)
        if found is not None:
            return seed, model, found
    raise SystemExit("no seed gives a text that varies")


def configuration(family, tokenizer, changes=None):
    """The configuration with the tokenizer's numbers in it."""
    beginning, ends, _, _ = special_of(family)
    number = tokenizer.token_to_id
    settings = {**SIZES, **FAMILIES[family], **(changes or {})}
    settings["bos_token_id"] = number(beginning) if beginning else None
    settings["eos_token_id"] = number(ends[0])
    settings.setdefault("pad_token_id", number(ends[-1]))
    kind = settings.pop("model_type")
    return AutoConfig.for_model(kind, **settings)


def save_tokenizer(folder, family, tokenizer, template):
    """tokenizer.json and tokenizer_config.json, with the names that the chat template uses."""
    beginning, ends, unknown, special = special_of(family)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "add_bos_token": tokenizer.post_processor is not None,
        "bos_token": beginning,
        "eos_token": ends[0],
        "unk_token": unknown,
        "pad_token": ends[-1],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "chat_template": template,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")
    settings = {"do_sample": False, "eos_token_id": [tokenizer.token_to_id(end) for end in ends]}
    if beginning:
        settings["bos_token_id"] = tokenizer.token_to_id(beginning)
    (folder / "generation_config.json").write_text(json.dumps(settings, indent=1) + "\n")


def save_expected(folder, prompts, found, model):
    """What the Rust tests compare with."""
    cases = [{"prompt": prompt, "greedy": tokens} for prompt, (tokens, _) in zip(prompts, found)]
    (folder / "expected.json").write_text(json.dumps({"cases": cases}) + "\n")
    tensors = {"every": logits_of(model, prompts[1]).contiguous()}
    for index, (prompt, (_, last)) in enumerate(zip(prompts, found)):
        tensors[f"prompt.{index}"] = logits_of(model, prompt)[-1].contiguous()
        tensors[f"greedy.{index}"] = last.contiguous()
    save_file(tensors, folder / "expected.safetensors")


def make(family):
    """One folder."""
    folder = FIXTURES / family
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tokenizer, template = tokenizer_of(family)
    config = configuration(family, tokenizer)
    prompts = prompts_of(tokenizer)
    ends = {tokenizer.token_to_id(token) for token in special_of(family)[3] + special_of(family)[1]}
    dtype = HALF.get(family, torch.float32)
    in_blocks = family.endswith("_mxfp4")
    rounding = round_experts if in_blocks else lambda model: round_to(model, dtype)
    seed, model, found = seeded(config, prompts, ends, rounding)
    size = "90KB" if family in SHARDED else "5GB"
    copy.deepcopy(model).to(dtype).save_pretrained(folder, max_shard_size=size)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if in_blocks:
        save_in_blocks(model, folder)
    save_tokenizer(folder, family, tokenizer, template)
    save_expected(folder, prompts, found, model)
    tell(family, folder, seed, prompts, found, tokenizer)


def tell(family, folder, seed, prompts, found, tokenizer):
    """What was made."""
    total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    distinct = [len(set(tokens)) for tokens, _ in found]
    print(f"{family}: seed {seed}, {total // 1024} KiB, distinct greedy tokens {distinct}, prompts of "
          f"{[len(prompt) for prompt in prompts]} tokens, vocabulary {tokenizer.get_vocab_size()}", flush=True)


NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "self_attn.dense": "attn_output", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down", "model.final_layernorm": "output_norm",
    "mlp.router": "ffn_gate_inp", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}
GEMMA_NAMES = {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def gguf_name(family, name):
    """A tensor's name in GGUF files."""
    if family == "gpt_oss" and name.endswith("sinks"):
        return f"blk.{name.split('.')[2]}.attn_sinks.weight"
    stem, end = name.rsplit(".", 1)
    if stem in NAMES:
        return f"{NAMES[stem]}.{end}"
    _, _, layer, part = stem.split(".", 3)
    more = {"gemma3": GEMMA_NAMES, "gpt_oss": {"post_attention_layernorm": "post_attention_norm"}}
    names = {**NAMES, **more.get(family, {})}
    return f"blk.{layer}.{names[part]}.{end}"


def gguf_round(model, kind):
    """Matrices as their blocks stand for them."""
    import gguf

    round_experts(model)
    kind = gguf.GGMLQuantizationType[kind]
    for tensor in model.parameters():
        if tensor.dim() == 2:
            blocks = gguf.quants.quantize(tensor.detach().numpy(), kind)
            tensor.data = torch.from_numpy(gguf.quants.dequantize(blocks, kind)).float()


def permuted(tensor, heads):
    """The order that llama.cpp has the rows of a head in."""
    return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)


def gguf_experts(writer, name, values):
    """Matrices, or biases, of all experts, of which gate and up lie in turn; matrices in blocks of 4-bit floats."""
    import gguf

    kind = gguf.GGMLQuantizationType.MXFP4
    end = "bias" if name.endswith("_bias") else "weight"
    parts = {"down": values}
    if "gate_up" in name:
        parts = {"gate": values[..., ::2], "up": values[..., 1::2]}
    for part, values in parts.items():
        stem = f"blk.{name.split('.')[2]}.ffn_{part}_exps.{end}"
        if end == "bias":
            writer.add_tensor(stem, values.contiguous().numpy())
        else:
            matrices = values.transpose(1, 2).contiguous().numpy()
            writer.add_tensor(stem, gguf.quants.quantize(matrices, kind), raw_dtype=kind)


def gguf_tensors(writer, family, model, kind):
    """All tensors, matrices in blocks."""
    import gguf

    kind = gguf.GGMLQuantizationType[kind]
    config = model.config
    for name, tensor in model.named_parameters():
        values = tensor.detach().clone()
        if "experts" in name:
            gguf_experts(writer, name, values)
            continue
        if family == "gemma3" and "norm" in name:
            values += 1
        if family == "llama" and "q_proj" in name:
            values = permuted(values, config.num_attention_heads)
        if family == "llama" and "k_proj" in name:
            values = permuted(values, config.num_key_value_heads)
        if values.dim() == 2:
            writer.add_tensor(gguf_name(family, name), gguf.quants.quantize(values.numpy(), kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(family, name), values.numpy())


def gguf_ropes(writer, family, config):
    """How rotary embeddings are stretched, which GGUF files tell in tensors."""
    rope = config.rope_parameters
    if family == "llama":
        plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, config.head_dim, 2).float() / config.head_dim)
        model = AutoModelForCausalLM.from_config(config)
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq).numpy())
    elif family == "phi3":
        for name in ["long", "short"]:
            factors = torch.tensor(rope[f"{name}_factor"], dtype=torch.float32)
            writer.add_tensor(f"rope_factors_{name}.weight", factors.numpy())
        original = config.original_max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(original)
        scale = config.max_position_embeddings / original
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)))
    elif family == "gemma3":
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["full_attention"]["factor"])
    elif family == "gpt_oss":
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def gguf_settings(writer, family, config):
    """The metadata that the decoder needs."""
    rope = config.rope_parameters
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if family == "phi2":
        writer.add_layer_norm_eps(config.layer_norm_eps)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["full_attention"]["rope_theta"] if family == "gemma3" else rope["rope_theta"])
    writer.add_rope_dimension_count(int(size * rope.get("partial_rotary_factor", 1.0)))
    writer.add_vocab_size(config.vocab_size)
    if family in ["qwen3", "gemma3", "gpt_oss"]:
        writer.add_key_length(size)
        writer.add_value_length(size)
    if family == "gpt_oss":
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.intermediate_size)
    if family in ["phi3", "gemma3", "gpt_oss"]:
        writer.add_sliding_window(config.sliding_window)


def gguf_tokenizer(writer, family, tokenizer, template):
    """The metadata that the tokenizer needs."""
    import gguf

    beginning, ends, unknown, special = special_of(family)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = [tokenizer.id_to_token(index) for index in range(tokenizer.get_vocab_size())]
    kinds = []
    for token in tokens:
        kind = gguf.TokenType.NORMAL
        if token == unknown and token not in special:
            kind = gguf.TokenType.UNKNOWN
        elif token in tokenizer.get_added_tokens_decoder_names:
            kind = gguf.TokenType.CONTROL
        elif model.get("byte_fallback") and len(token) == 6 and token.startswith("<0x"):
            kind = gguf.TokenType.BYTE
        kinds.append(kind)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    if model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([-float(index) for index in range(len(tokens))])
        writer.add_add_space_prefix(family != "gemma3")
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre({"llama": "smollm", "phi2": "phi-2", "gpt_oss": "gpt-4o"}.get(family, "qwen2"))
        writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_add_bos_token(tokenizer.post_processor is not None)
    writer.add_eos_token_id(tokenizer.token_to_id(ends[0]))
    if beginning:
        writer.add_bos_token_id(tokenizer.token_to_id(beginning))
    writer.add_pad_token_id(tokenizer.token_to_id(ends[-1]))
    writer.add_chat_template(template)


class Named:
    """A tokenizer with the names of its added tokens at hand."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder().values()
        self.get_added_tokens_decoder_names = {token.content for token in added}

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


def make_gguf(family):
    """One folder with a GGUF file and nothing beside it that a model needs."""
    import gguf

    folder = FIXTURES / f"gguf_{family}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    kind, changes = GGUF[family]
    tokenizer, template = tokenizer_of(family)
    config = configuration(family, tokenizer, changes)
    prompts = prompts_of(tokenizer)
    ends = {tokenizer.token_to_id(token) for token in special_of(family)[3] + special_of(family)[1]}
    seed, model, found = seeded(config, prompts, ends, lambda model: gguf_round(model, kind))
    writer = gguf.GGUFWriter(folder / f"tiny-{family}-{kind}.gguf", ARCHITECTURES.get(family, family))
    gguf_settings(writer, family, config)
    gguf_tokenizer(writer, family, Named(tokenizer), template)
    gguf_ropes(writer, family, config)
    gguf_tensors(writer, family, model, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_expected(folder, prompts, found, model)
    expected = json.loads((folder / "expected.json").read_text())
    expected["texts"] = [{"text": text, "tokens": tokenizer.encode(text).ids} for text in TEXTS]
    (folder / "expected.json").write_text(json.dumps(expected, ensure_ascii=False) + "\n")
    tell(f"gguf_{family}", folder, seed, prompts, found, tokenizer)


if __name__ == "__main__":
    for name in sys.argv[1:] or [*FAMILIES, *(f"gguf_{family}" for family in GGUF)]:
        if name.startswith("gguf_"):
            make_gguf(name.removeprefix("gguf_"))
        else:
            make(name)
