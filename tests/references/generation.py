"""Writes what transformers makes of logits and of chat templates, for src/generation.

`sampling.json`: random logits, settings, and the probabilities that transformers' own processors leave of them, in the
order in which `generate` applies them, and the frequency and presence penalties as OpenAI's documentation defines them.
`logprobs`: log probabilities by torch. `defaults`: the sampling that transformers takes from a `generation_config.json`. `chat_templates.json`: templates in the styles of published ones, messages, and
what `apply_chat_template` makes of them, or the error that the template raises. Call:

    python generation.py

Needs the PyPI packages torch, transformers and tokenizers.
"""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.generation import logits_process as process

FOLDER = Path(__file__).resolve().parent

SETTINGS = [
    {"temperature": 1.0},
    {"temperature": 0.6},
    {"temperature": 1.7, "top_k": 5},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 0.9, "top_p": 0.8},
    {"temperature": 1.0, "top_p": 0.01},
    {"temperature": 1.0, "top_p": 1.0},
    {"temperature": 1.3, "min_p": 0.1},
    {"temperature": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 1.1, "repetition_penalty": 1.3},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.7, "min_p": 0.02, "repetition_penalty": 0.8},
    {"temperature": 1.0, "frequency_penalty": 0.7},
    {"temperature": 0.9, "presence_penalty": 1.3},
    {"temperature": 1.2, "top_k": 9, "frequency_penalty": -0.4, "presence_penalty": -0.9},
    {"temperature": 1.0, "logit_bias": {"3": 4.5, "17": -100.0, "39": 1.25}},
    {"temperature": 1.0, "logit_bias": {"8": 100.0}, "top_p": 0.9},
    {"temperature": 1.0, "barred": [2, 30, 31]},
    {
        "temperature": 0.8, "top_k": 15, "repetition_penalty": 1.2, "frequency_penalty": 0.5, "presence_penalty": 0.25,
        "logit_bias": {"1": 2.0, "12": -3.0}, "barred": [0, 5],
    },
]  # fmt: skip

# As published `generation_config.json` have them.
DEFAULTS = [
    {},
    {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
    {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05},
    {"do_sample": True, "top_k": 0, "min_p": 0.05},
    {"do_sample": True, "top_k": 64, "top_p": 1.0, "temperature": 1.0},
    {"do_sample": False, "temperature": 0.5, "top_p": 0.5},
]


def probabilities(logits, prompt, answer, settings):
    """As `generate` does: bias, penalties, minimum of tokens, temperature, top-k, top-p, min-p."""
    tokens, scores = torch.tensor([prompt + answer]), torch.tensor([logits])
    if "logit_bias" in settings:
        bias = {(int(token),): value for token, value in settings["logit_bias"].items()}
        scores = process.SequenceBiasLogitsProcessor(bias)(tokens, scores)
    if "repetition_penalty" in settings:
        scores = process.RepetitionPenaltyLogitsProcessor(settings["repetition_penalty"])(tokens, scores)
    # mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence
    counts = torch.bincount(torch.tensor(answer, dtype=torch.long), minlength=len(logits)).float()
    scores = scores - counts * settings.get("frequency_penalty", 0.0)
    scores = scores - (counts > 0).float() * settings.get("presence_penalty", 0.0)
    steps = []
    if "barred" in settings:
        least = len(answer) + 1
        steps.append(process.MinNewTokensLengthLogitsProcessor(len(prompt), least, settings["barred"], "cpu"))
    steps += warpers(settings)
    for step in steps:
        scores = step(tokens, scores)
    return torch.softmax(scores.double(), dim=-1)[0].tolist()


def warpers(settings):
    steps = []
    if settings["temperature"] != 1.0:
        steps.append(process.TemperatureLogitsWarper(settings["temperature"]))
    if "top_k" in settings:
        steps.append(process.TopKLogitsWarper(settings["top_k"]))
    if settings.get("top_p", 1.0) < 1.0:
        steps.append(process.TopPLogitsWarper(settings["top_p"]))
    if "min_p" in settings:
        steps.append(process.MinPLogitsWarper(settings["min_p"]))
    return steps


def sampling():
    """Cases of 40 tokens each."""
    generator = torch.Generator().manual_seed(5)
    cases = []
    for settings in SETTINGS:
        for _ in range(3):
            logits = (torch.randn(40, generator=generator) * 3).tolist()
            prompt = torch.randint(0, 40, (6,), generator=generator).tolist()
            answer = []
            if settings.keys() & {"frequency_penalty", "presence_penalty", "barred"}:
                answer = torch.randint(0, 12, (9,), generator=generator).tolist()
            kept = [float(f"{p:.9g}") for p in probabilities(logits, prompt, answer, settings)]
            logits = torch.tensor(logits).tolist()
            case = {"settings": settings, "logits": logits, "prompt": prompt, "probabilities": kept}
            cases.append({**case, "answer": answer} if answer else case)
    return cases


def logprobs():
    """Log probabilities of all tokens, and the most probable ones in their order."""
    generator = torch.Generator().manual_seed(6)
    cases = []
    for scale in [1, 3, 40, 1000]:
        logits = torch.randn(384, generator=generator) * scale
        all_of_them = torch.log_softmax(logits.double(), dim=-1)
        cases.append({
            "logits": logits.tolist(),
            "logprobs": [float(f"{p:.9g}") for p in all_of_them.tolist()],
            "top": torch.topk(all_of_them, 20).indices.tolist(),
        })
    return cases


def defaults():
    """Greedy or not, and the processors with their settings, that `generate` makes of each file."""
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    cases = []
    for file in DEFAULTS:
        model.generation_config = GenerationConfig.from_dict(file)
        prepared, _ = model._prepare_generation_config(None)
        steps = model._get_logits_processor(prepared, input_ids_seq_length=1)
        settings = {}
        for step in steps:
            match step:
                case process.TemperatureLogitsWarper():
                    settings["temperature"] = step.temperature
                case process.TopKLogitsWarper():
                    settings["top_k"] = step.top_k
                case process.TopPLogitsWarper():
                    settings["top_p"] = step.top_p
                case process.MinPLogitsWarper():
                    settings["min_p"] = step.min_p
                case process.RepetitionPenaltyLogitsProcessor():
                    settings["repetition_penalty"] = step.penalty
                case _:
                    raise ValueError(step)
        cases.append({"file": file, "greedy": not prepared.do_sample, "settings": settings})
    return cases


TEMPLATES = {
    "chatml": (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "default system": (
        "{%- if messages[0].role != 'system' %}\n    {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}\n{%- endif %}\n"
        "{%- for message in messages %}\n    {%- if loop.first and message.role == 'system' %}\n"
        "        {{- '<|im_start|>system\\n' ~ message.content | trim ~ '<|im_end|>\\n' }}\n    {%- else %}\n"
        "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n    {%- endif %}\n"
        "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
    ),
    "headers": (
        "{{- bos_token }}\n{%- if messages[0]['role'] == 'system' %}\n"
        "    {%- set system_message = messages[0]['content']|trim %}\n    {%- set messages = messages[1:] %}\n"
        "{%- else %}\n    {%- set system_message = '' %}\n{%- endif %}\n"
        "{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}\n"
        "{%- if tools is not none %}\n    {{- 'Environment: ipython\\n' }}\n{%- endif %}\n"
        "{{- system_message }}\n{{- '<|eot_id|>' }}\n"
        "{%- for message in messages %}\n    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}\n"
        "        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim "
        "+ '<|eot_id|>' }}\n    {%- endif %}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}\n"
    ),
    "turns": (
        "{{ bos_token }}\n{%- if messages[0]['role'] == 'system' -%}\n"
        "    {%- set first = messages[0]['content'] + '\\n\\n' -%}\n    {%- set rest = messages[1:] -%}\n"
        "{%- else -%}\n    {%- set first = '' -%}\n    {%- set rest = messages -%}\n{%- endif -%}\n"
        "{%- for message in rest -%}\n    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}\n"
        "        {{ raise_exception('Roles must alternate user/assistant') }}\n    {%- endif -%}\n"
        "    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}\n"
        "    {{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') }}\n"
        "    {%- if message['content'] is string -%}\n        {{ message['content'] | trim }}\n"
        "    {%- elif message['content'] is iterable -%}\n        {{ raise_exception('only text') }}\n    {%- endif -%}\n"
        "    {{ '<end_of_turn>\\n' }}\n{%- endfor -%}\n"
        "{%- if add_generation_prompt -%}\n    {{ '<start_of_turn>model\\n' }}\n{%- endif -%}\n"
    ),
    "brackets": (
        "{{ bos_token }}{% set ns = namespace(index=0, system='') %}{% for message in messages %}"
        "{% if message.role == 'system' %}{% set ns.system = message.content + '\\n\\n' %}{% continue %}{% endif %}"
        "{% if (message['role'] == 'user') != (ns.index % 2 == 0) %}"
        "{{ raise_exception('conversation roles must alternate') }}{% endif %}"
        "{% if message.role == 'user' %}{{ '[INST] ' + (ns.system if loop.last else '') + message.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + message.content.strip() + eos_token }}{% endif %}"
        "{% set ns.index = ns.index + 1 %}{% endfor %}"
    ),
    "words": (
        "{%- for message in messages -%}\n{{- '<|' + message['role'] + '|>\\n' + message['content'].rstrip() + "
        "'<|end|>\\n' -}}\n{%- if loop.index == 40 -%}{%- break -%}{%- endif -%}\n{%- endfor -%}\n"
        "{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- else -%}{{- eos_token -}}{%- endif -%}"
    ),
    "reasons": (
        "{%- for message in messages %}\n{%- set content = message.content %}\n"
        "{%- if message.role == 'assistant' and '</think>' in content %}\n"
        "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n{%- endif %}\n"
        "{{- '<' ~ message.role[:4].upper() ~ '>' ~ content.replace('\\t', ' ') ~ '\\n' }}\n{%- endfor %}\n"
        "{%- generation %}{{ 'A' }}{% endgeneration %}"
        "{%- if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
        "{{ messages | length }} {{ unknown }} {{ none }} {{ true }} {{ 1 == 2 }}"
        "{% if messages[0].content.startswith('Be') %} begins{% endif %}"
    ),
    "json": (
        "{{ messages | tojson }}\n{{ messages[0] | tojson(indent=2) }}\n{{ {'a': [], 'b': {}, 'c': [1, 2.5, true, none]} "
        "| tojson(indent=4) }}\n{{ {'a': [], 'b': {}, 'c': [1, 2.5, true, none]} | tojson }}"
    ),
    "macros": (
        "{%- macro turn(role, text, close=true) %}[{{ role }}: {{ text }}{% if close %}]{% endif %}{%- endmacro %}\n"
        "{% for message in messages %}\n  {{ turn(message.role, message.content) }}\n{% endfor %}\n"
        "{% if add_generation_prompt %}\n{{ turn('assistant', '', close=false) }}\n{% endif %}\n"
    ),
}

CONVERSATIONS = [
    [{"role": "user", "content": "What is rain?"}],
    [{"role": "system", "content": " Be brief. \n"}, {"role": "user", "content": "Why <is> \"it\" wet & 'cold'? é 日本 \t."}],
    [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHi there.  "},
        {"role": "user", "content": "  Two\nlines "},
    ],
    [{"role": "assistant", "content": "First"}, {"role": "assistant", "content": "Second"}],
]


def chat_templates():
    """Every template on every conversation."""
    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    cases = []
    for name, template in TEMPLATES.items():
        for messages in CONVERSATIONS:
            case = {"name": name, "template": template, "messages": messages}
            try:
                case["text"] = tokenizer.apply_chat_template(
                    messages, chat_template=template, tokenize=False, add_generation_prompt=True
                )
            except Exception as error:
                case["error"] = str(error)
            cases.append(case)
    return cases


def main():
    """Writes both files."""
    numbers = {"cases": sampling(), "logprobs": logprobs(), "defaults": defaults()}
    for name, content in [("sampling", numbers), ("chat_templates", {"cases": chat_templates()})]:
        text = json.dumps(content, ensure_ascii=False, indent=None)
        (FOLDER / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
