"""Writes chat_constructs.json: chat templates of our own that use what published ones use of Jinja2, and what
transformers' own function renders of them over six conversations; and single expressions with their texts.

    pip install transformers jinja2
    python tests/references/chat_constructs.py

Each template is named after the models whose published template uses the same constructs: loops, namespaces, macros,
filters, tests, methods and ways to write JSON. The words and marks are ours.
"""

import json
import pathlib

from transformers.utils.chat_template_utils import _alias_reasoning_fields, render_jinja_template

import chat_construct_templates
import chat_expressions

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find_train",
            "description": "Finds a train.\nTells when it leaves.",
            "parameters": {
                "type": "object",
                "properties": {
                    "to": {"type": "string", "description": "Where to, as \"Zürich\""},
                    "class": {"type": "string", "enum": ["first", "second"], "default": "second"},
                    "stops": {"type": "array", "items": {"type": "string"}, "description": "Stops <on> the way"},
                    "seat": {
                        "type": "object",
                        "properties": {"row": {"type": "integer", "minimum": 1}, "window": {"type": ["boolean", "null"]}},
                        "required": ["row"],
                    },
                    "price": {"type": "number", "maximum": 1e16, "minimum": 0.00001},
                },
                "required": ["to"],
            },
            "return": {"type": "string"},
        },
    },
    {"type": "function", "function": {"name": "hour", "description": "Tells the hour", "parameters": {"type": "object", "properties": {}}}},
]

CALLS = [
    {"role": "user", "content": "When does the train leave?"},
    {
        "role": "assistant",
        "content": "I look.",
        "tool_calls": [
            {"id": "call12345", "type": "function", "function": {"name": "find_train", "arguments": {"to": "Zürich", "stops": ["Bern"], "seat": {"row": 3, "window": None}, "price": 12.5, "class": "first"}}},
            {"id": "call67890", "type": "function", "function": {"name": "hour", "arguments": {}}},
        ],
    },
    {"role": "tool", "name": "find_train", "tool_call_id": "call12345", "content": "{\"leaves\": \"12:30\"}"},
    {"role": "tool", "name": "hour", "tool_call_id": "call67890", "content": "noon"},
    {"role": "assistant", "content": "At half past twelve."},
    {"role": "user", "content": "Thanks!"},
]

CONVERSATIONS = {
    "system": {"messages": [{"role": "system", "content": " You are brief. \n"}, {"role": "user", "content": "What is rain?"}]},
    "tools": {"messages": [{"role": "system", "content": "Use tools."}, {"role": "user", "content": "Find a train."}], "tools": TOOLS},
    "tool calls": {"messages": CALLS, "tools": TOOLS},
    "several turns": {
        "messages": [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "<think>\nA greeting.\n</think>\n\nHi there.  "},
            {"role": "user", "content": "  Two\nlines "},
            {"role": "assistant", "content": "Yes.", "reasoning_content": "It is so.\n"},
            {"role": "user", "content": "Why?"},
        ]
    },
    "empty": {"messages": []},
    "other scripts": {
        "messages": [
            {"role": "system", "content": "Отвечай кратко."},
            {"role": "user", "content": "猫はどこ? 🐈‍⬛ \"é\" <b>&amp;</b> 'x'\u2028مرحبا\tß"},
            {"role": "assistant", "content": "ΟΔΟΣ ǅ \u00a0"},
            {"role": "user", "content": "नमस्ते"},
        ]
    },
}


def rendered(template, values):
    try:
        texts, _ = render_jinja_template([values["messages"]], tools=values.get("tools"), chat_template=template, add_generation_prompt=True, **SPECIAL)
        return texts[0]
    except Exception:
        return None


def main():
    # Written once: texts that several templates share would be many times in the file.
    templates = []
    for name, template in chat_construct_templates.TEMPLATES.items():
        texts = {key: rendered(template, values) for key, values in CONVERSATIONS.items()}
        filled = sum(text is not None for text in texts.values())
        assert filled >= 2, (name, filled, rendered_error(template))
        templates.append({"name": name, "template": template, "texts": texts})
    expressions = []
    for expression in chat_expressions.EXPRESSIONS:
        template = expression if "{%" in expression or "{{" in expression else "{{ " + expression + " }}"
        expressions.append({"template": template, "text": rendered(template, CONVERSATIONS["tool calls"])})
    # As templates see them.
    seen = {key: {**values, "messages": _alias_reasoning_fields(values["messages"])} for key, values in CONVERSATIONS.items()}
    out = {"conversations": seen, "templates": templates, "expressions": expressions}
    path = pathlib.Path(__file__).with_name("chat_constructs.json")
    path.write_text(json.dumps(out, ensure_ascii=False, indent=1) + "\n")
    print(len(templates), "templates", len(expressions), "expressions", path.stat().st_size, "bytes")
    print("refused:", [(t["name"], k) for t in templates for k, v in t["texts"].items() if v is None])
    print("refused:", [e["template"] for e in expressions if e["text"] is None])


def rendered_error(template):
    try:
        render_jinja_template([CONVERSATIONS["system"]["messages"]], chat_template=template, add_generation_prompt=True, **SPECIAL)
    except Exception as error:
        return repr(error)


if __name__ == "__main__":
    main()
