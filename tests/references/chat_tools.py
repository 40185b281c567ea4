"""Writes chat_tools.json: what transformers' own function renders of conversations with tools, calls, results and further
arguments, by templates of chat_construct_templates.py.

    pip install transformers jinja2
    python tests/references/chat_tools.py
"""

import json
import pathlib

from transformers.utils.chat_template_utils import render_jinja_template

import chat_construct_templates
from chat_constructs import SPECIAL

FAMILIES = ["llama 3.1", "qwen 2.5", "qwen 3", "mistral v3", "mistral small", "hermes tools", "granite 3.3", "smollm 3", "qwen 3 coder", "llama 4", "function gemma"]

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find_train",
            "description": "Finds a train.\nTells when it leaves.",
            "parameters": {
                "type": "object",
                "properties": {"to": {"type": "string", "description": "Where to, as \"Zürich\""}, "stops": {"type": "array", "items": {"type": "string"}}},
                "required": ["to"],
            },
        },
    },
    {"type": "function", "function": {"name": "hour", "description": "", "parameters": {"type": "object", "properties": {}}}},
]

ASKED = [{"role": "user", "content": "When does the train leave?"}]

ANSWERED = [
    *ASKED,
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "find_train", "arguments": {"to": "Zürich", "stops": ["Bern"]}}, "id": "abcdefghi"}],
    },
    {"role": "tool", "content": "{\"leaves\": \"12:30\"}", "tool_call_id": "abcdefghi"},
    {"role": "assistant", "content": "At half past twelve."},
    {"role": "user", "content": "Thanks!"},
]

CASES = {
    "tools": {"messages": ASKED, "tools": TOOLS},
    "calls": {"messages": ANSWERED, "tools": TOOLS},
    "results without tools": {"messages": ANSWERED},
    "arguments": {"messages": ASKED, "arguments": {"enable_thinking": False, "date_string": "1 May 2025"}},
}


def rendered(template, case):
    try:
        texts, _ = render_jinja_template(
            [case["messages"]], tools=case.get("tools"), chat_template=template, add_generation_prompt=True, **SPECIAL, **case.get("arguments", {})
        )
        return texts[0]
    except Exception:
        return None


def main():
    texts = {name: {key: rendered(chat_construct_templates.TEMPLATES[name], case) for key, case in CASES.items()} for name in FAMILIES}
    path = pathlib.Path(__file__).with_name("chat_tools.json")
    path.write_text(json.dumps({"cases": CASES, "texts": texts}, ensure_ascii=False, indent=1) + "\n")
    print(path.stat().st_size, "bytes; refused:", [(name, key) for name in FAMILIES for key, text in texts[name].items() if text is None])


if __name__ == "__main__":
    main()
