"""Records what the checkpoints of fetch.py answer, by their reference implementations, as references.json beside this.

    python tests/checkpoints/references.py FOLDER

Chat: transformers with the dequantised weights in 32-bit floats, greedy, through the file's own chat template; recorded up
to the first step at which the two best tokens are closer than GAP. The tokens of each prompt are llama.cpp's as well: the
script fails where the two differ. Embeddings: sentence-transformers; of each vector the first KEPT numbers.
Needs the PyPI packages torch, transformers, sentence-transformers, gguf, jinja2 and xllamacpp.
"""

import json
import pathlib
import sys
import urllib.request

import torch
import xllamacpp
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer

OUT = pathlib.Path(__file__).parent / "references.json"
GAP, STEPS, KEPT = 2e-3, 24, 16

LONG = " ".join(
    f"On day {day} the ship had sailed {day * 37} miles and the crew counted {day % 9 + 3} whales." for day in range(1, 76)
)
PROMPTS = [
    "What is the capital of France?",
    "Translate to French: The cat sleeps.",
    "Write a Python function that adds two numbers.",
    "¿Cuál es la capital de España?",
    "日本の首都はどこですか。",
    "Какой сегодня день?",
    "ما هي عاصمة مصر؟",
    "Say something nice 🐈‍⬛🎉",
    "1, 1, 2, 3, 5, 8,",
    "for (int i = 0; i < 10; i++) {\n\tprintf(\"%d\\n\", i);\n}\nWhat does this print?",
    "   Spaces   and\n\n\nlines\t\ttabs   ",
    LONG + " How many whales were counted on day 7?",
]


def texts():
    words = "the cat sleeps on a warm sofa while rain falls outside and nobody minds".split()
    odd = ["", " ", "a", "A", "é", "e\u0301", "ﬁ", "Ⅷ", "🐈‍⬛", "日本語の文です。", "Привет, мир!", "مرحبا", "שלום", "हिन्दी", "ไทย",
           "\u200bzero\u200cwidth", "tab\tand\nline", "<s>", "</s>", "<mask>", "[CLS]", "##s", "1234567890", "3.14159e-10", "C++ & C#",
           "don't won't can't", "co-operate", "e-mail@example.org", "https://example.org/a?b=c#d", "!!!", "…", "\u00a0", "ǅ", "ß", "İ"]
    sentences = [" ".join(words[(start * 5 + step * 7) % len(words)] for step in range(1 + start % 40)) for start in range(140)]
    long = ["word " * count for count in (100, 380, 381, 382, 383, 384, 385, 400, 600, 1500)]
    mixed = [f"{text} {sentences[index]}" for index, text in enumerate(odd[:15])]
    return odd + sentences + long + mixed


class Llama:
    """A server of llama.cpp, for its tokens."""

    def __init__(self, file):
        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx, params.n_gpu_layers, params.warmup = 256, 0, False
        self.server = xllamacpp.Server(params)

    def tokens(self, text):
        body = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
        request = urllib.request.Request(f"{self.server.listening_address}/tokenize", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["tokens"]


def chat(folder, file):
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
    llama = Llama(folder / file)
    cases = []
    for prompt in PROMPTS:
        text = prompt
        if tokenizer.chat_template:
            messages = [{"role": "user", "content": prompt}]
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        else:
            text = (tokenizer.bos_token or "") + prompt
        ids = llama.tokens(text)
        theirs = tokenizer(text, add_special_tokens=False).input_ids
        if ids != theirs:
            print(f"{file}: other tokens by transformers for {prompt[:40]!r}", ids[:20], theirs[:20])
        ends = model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or [])
        ends.add(tokenizer.eos_token_id)
        written, past, given = [], None, torch.tensor([ids])
        with torch.no_grad():
            for _ in range(STEPS):
                out = model(given, past_key_values=past, use_cache=True)
                best = out.logits[0, -1].topk(2)
                if best.values[0] - best.values[1] < GAP:
                    break
                past, token = out.past_key_values, int(best.indices[0])
                written.append(token)
                if token in ends:
                    break
                given = torch.tensor([[token]])
        cases.append({"prompt": prompt, "tokens": len(ids), "written": written,
                      "text": tokenizer.decode([token for token in written if token not in ends], skip_special_tokens=False),
                      "ended": bool(written) and written[-1] in ends})
        print(file, len(ids), repr(cases[-1]["text"][:60]), flush=True)
    return {"template": bool(tokenizer.chat_template), "cases": cases}


def embeddings(folder):
    model = SentenceTransformer(str(folder))
    vectors = model.encode(texts(), batch_size=1, convert_to_numpy=True)
    return [{"text": text, "begin": [round(float(x), 6) for x in vector[:KEPT]]} for text, vector in zip(texts(), vectors)]


def main():
    folder = pathlib.Path(sys.argv[1])
    recorded = {
        "smollm2": chat(folder, "smollm2-135m-q4_1.gguf"),
        "gemma3": chat(folder, "gemma-3-270m-q4_k_m.gguf"),
        "mpnet": embeddings(folder / "all-mpnet-base-v2"),
    }
    OUT.write_text(json.dumps(recorded, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
