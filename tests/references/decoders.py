"""Writes the tiny decoders of tests/fixtures/text_to_text with transformers' own results beside them.

Each folder is laid out like a published repository: configuration, weights, tokenizer with a chat template,
generation settings. `expected.json` holds prompts as token numbers with 64 greedy tokens each;
`expected.safetensors` the logits (for each prompt after its last token and after all greedy ones, and for one prompt
after every token). Call:

    python decoders.py [FAMILY ...]

Needs the PyPI packages torch, transformers, tokenizers and safetensors.
"""

import json
import math
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
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


def byte_level(special, digits):
    """A byte-level tokenizer as of SmolLM and Qwen."""
    tokenizer = Tokenizer(models.BPE())
    if digits:
        split = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    else:
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

SIZES = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512, attention_dropout=0.0,
)


def special_of(family):
    """Names of the special tokens: beginning, end (or several), unknown, all."""
    if family.startswith("llama"):
        return "<|im_start|>", ["<|im_end|>"], "<|endoftext|>", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    if family.startswith("qwen"):
        names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
        return None, ["<|im_end|>", "<|endoftext|>"], None, names[: 5 if "3" in family else 3]
    if family.startswith("phi"):
        names = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
        return "<s>", ["<|end|>", "<|endoftext|>"], "<unk>", names
    if family.startswith("gemma"):
        return "<bos>", ["<eos>", "<end_of_turn>"], "<unk>", ["<start_of_turn>", "<end_of_turn>"]
    return "<s>", ["</s>"], "<unk>", ["[INST]", "[/INST]"]


def tokenizer_of(family):
    """The tokenizer and the chat template in the family's style."""
    special = special_of(family)[3]
    if family.startswith("llama"):
        return byte_level(special, digits=True), CHATML
    if family.startswith("qwen"):
        return byte_level(special, digits=False), QWEN3 if "3" in family else QWEN
    if family.startswith("phi"):
        return sentence_piece(["<unk>", "<s>", "</s>"], special, True, None), PHI3
    if family.startswith("gemma"):
        return sentence_piece(["<pad>", "<eos>", "<bos>", "<unk>"], special, False, "<bos>"), GEMMA
    return sentence_piece(["<unk>", "<s>", "</s>"], special, True, "<s>"), MISTRAL


LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
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
    "qwen3": dict(model_type="qwen3", head_dim=16, tie_word_embeddings=False,
                  rope_parameters=dict(rope_type="default", rope_theta=1e6)),
    "qwen3_moe": dict(model_type="qwen3_moe", head_dim=8, num_experts=6, num_experts_per_tok=2, norm_topk_prob=True,
                      moe_intermediate_size=32, decoder_sparse_step=1, mlp_only_layers=[1],
                      rope_parameters=dict(rope_type="default", rope_theta=1e6)),
    # Phi-4-mini's shape: long rotary embedding on a part of each head. The longest prompt is long at once, the others
    # grow long.
    "phi3": dict(model_type="phi3", max_position_embeddings=512, original_max_position_embeddings=24,
                 rope_parameters=dict(rope_type="longrope", rope_theta=10000.0, partial_rotary_factor=0.75,
                                      short_factor=[1.0, 1.1, 1.3], long_factor=[1.2, 2.5, 6.0]),
                 bos_token_id=1, eos_token_id=383, pad_token_id=379, tie_word_embeddings=False),
    "mistral": dict(model_type="mistral", head_dim=16, sliding_window=12,
                    rope_parameters=dict(rope_type="default", rope_theta=10000.0)),
    "gemma2": dict(model_type="gemma2", head_dim=16, query_pre_attn_scalar=24, sliding_window=8,
                   attn_logit_softcapping=5.0, final_logit_softcapping=4.0, hidden_activation="gelu_pytorch_tanh",
                   rope_parameters=dict(rope_type="default", rope_theta=10000.0)),
    "gemma3": dict(model_type="gemma3_text", head_dim=16, query_pre_attn_scalar=24, sliding_window=8,
                   num_hidden_layers=7, intermediate_size=32, hidden_activation="gelu_pytorch_tanh",
                   rope_parameters=dict(
                       sliding_attention=dict(rope_type="default", rope_theta=10000.0),
                       full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e6))),
}
HALF = {"llama_f16": torch.float16, "mistral": torch.bfloat16}
SHARDED = {"llama_f16"}


def randomize(model, seed):
    """Numbers large enough that every part of the computation shows in the results."""
    generator = torch.Generator().manual_seed(seed)
    gemma = "gemma" in model.config.model_type
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if "norm" in name:
                tensor.copy_((0.0 if gemma else 1.0) + 0.3 * noise)
            elif name.endswith("bias"):
                tensor.copy_(0.2 * noise)
            elif "embed_tokens" in name:
                tensor.copy_(noise * (0.35 if model.config.tie_word_embeddings else 1.0))
            elif "lm_head" in name:
                tensor.copy_(noise * 0.4)
            else:
                tensor.copy_(noise * 1.2 / math.sqrt(tensor.shape[-1]))


@torch.no_grad()
def logits_of(model, tokens):
    """All logits, from a single pass without a cache."""
    return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float()


def greedy(model, prompt):
    """64 greedy tokens with the logits behind the last, or nothing where two tokens are too close."""
    tokens = list(prompt)
    for _ in range(STEPS):
        logits = logits_of(model, tokens)[-1]
        best = torch.topk(logits, 2).values
        if (best[0] - best[1]).item() < GAP:
            return None
        tokens.append(int(logits.argmax()))
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
        result = greedy(model, prompt)
        if result is None or len(set(result[0])) < 12 or special & set(result[0]):
            return None
        found.append(result)
    return found


def seeded(config, prompts, special, dtype):
    """The first seed whose texts vary and whose best tokens are clear at each step."""
    for seed in range(400):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        randomize(model, seed)
        model = model.to(dtype).float()
        found = answers(model, prompts, special)
        if found is not None:
            return seed, model, found
    raise SystemExit("no seed gives a text that varies")


def configuration(family, tokenizer):
    """The configuration with the tokenizer's numbers in it."""
    beginning, ends, _, _ = special_of(family)
    number = tokenizer.token_to_id
    settings = dict(SIZES, **FAMILIES[family])
    settings["bos_token_id"] = number(beginning) if beginning else None
    settings["eos_token_id"] = number(ends[0])
    settings["pad_token_id"] = number(ends[-1])
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
    seed, model, found = seeded(config, prompts, ends, dtype)
    size = "90KB" if family in SHARDED else "5GB"
    model.to(dtype).save_pretrained(folder, max_shard_size=size)
    (folder / "generation_config.json").unlink(missing_ok=True)
    save_tokenizer(folder, family, tokenizer, template)
    save_expected(folder, prompts, found, model.float())
    total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    distinct = [len(set(tokens)) for tokens, _ in found]
    print(f"{family}: seed {seed}, {total // 1024} KiB, distinct greedy tokens {distinct}, prompts of "
          f"{[len(prompt) for prompt in prompts]} tokens, vocabulary {tokenizer.get_vocab_size()}", flush=True)


if __name__ == "__main__":
    for name in sys.argv[1:] or FAMILIES:
        make(name)
