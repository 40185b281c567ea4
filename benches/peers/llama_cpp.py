"""Measures llama.cpp beside this crate on one GGUF file: the same prompts, the same number of threads, in turns.

    cargo bench --bench generation --no-run
    python benches/peers/llama_cpp.py FILE BENCHMARK [--threads N] [--prompt TOKENS] [--turns N]

BENCHMARK is the program that the first command names. `pip install xllamacpp` brings llama.cpp. Prints each figure of ours
and of llama.cpp, the best of the turns, and their ratio; and the same by processor time, which others on the machine
disturb less. Neither llama.cpp nor a file of weights is part of this repository.
"""

import argparse
import concurrent.futures
import json
import re
import subprocess
import sys
import time

import xllamacpp

# As in benches/generation.rs.
OPENING = "Once upon a time, in a small village by the sea,"
TOKENS = 96
STREAMS = 8


class LlamaCpp:
    def __init__(self, path, threads, prompt, warmup=True):
        params = xllamacpp.CommonParams()
        params.model.path = path
        params.cpuparams.n_threads = threads
        params.cpuparams_batch.n_threads = threads
        params.n_parallel = STREAMS
        params.n_ctx = STREAMS * (prompt + TOKENS + 64)
        params.n_gpu_layers = 0
        params.warmup = warmup
        params.cache_prompt = False
        params.verbosity = 0
        began = time.perf_counter()
        self.server = xllamacpp.Server(params)
        self.load = time.perf_counter() - began

    def write(self, prompt, tokens):
        answer = self.server.handle_completions(
            {
                "prompt": prompt,
                "n_predict": tokens,
                "temperature": 0.0,
                "cache_prompt": False,
                "ignore_eos": True,
            }
        )
        answer = json.loads(answer) if isinstance(answer, str) else answer
        if "timings" not in answer:
            sys.exit("llama.cpp: %s" % str(answer)[:500])
        return answer["timings"]

    def together(self, prompt, tokens):
        with concurrent.futures.ThreadPoolExecutor(STREAMS) as callers:
            return list(callers.map(lambda _: self.write(prompt, tokens), range(STREAMS)))


def long_prompt(peer, tokens):
    repeated = lambda times: " ".join([OPENING] * times)
    one, two = (peer.write(repeated(times), 1)["prompt_n"] for times in (1, 2))
    return repeated(1 + max(tokens - one, 0) // max(two - one, 1))


def timed(work):
    began, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - began, time.process_time() - processor


def rates(peer, long):
    """Tokens a second of each figure, by the clock and by processor time."""
    found = {}

    def rate(name, tokens, seconds, processor):
        found[name] = (tokens / seconds, tokens / max(processor, 1e-9))

    _, first, first_processor = timed(lambda: peer.write(OPENING, 1))
    timings, seconds, processor = timed(lambda: peer.write(OPENING, TOKENS))
    rate("decode", timings["predicted_n"] - 1, seconds - first, processor - first_processor)
    timings, seconds, processor = timed(lambda: peer.write(long, 1))
    rate("prompt", timings["prompt_n"], seconds, processor)
    _, first, first_processor = timed(lambda: peer.together(OPENING, 1))
    _, seconds, processor = timed(lambda: peer.together(OPENING, TOKENS))
    rate("streams", STREAMS * (TOKENS - 1), seconds - first, processor - first_processor)
    _, seconds, processor = timed(lambda: peer.together(long, TOKENS))
    rate("streams with prompts", STREAMS * TOKENS, seconds, processor)
    return found


def ours(benchmark, path, threads, prompt):
    """The same figures, from the lines of the benchmark."""
    command = [benchmark, path, "--threads", str(threads), "--prompt", str(prompt), "--times", "1"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    pattern = r"^(.*): ([\d.]+) tokens/s, ([\d.]+) by processor time$"
    found = {name: (float(clock), float(processor)) for name, clock, processor in re.findall(pattern, lines, re.M)}
    return found, float(re.search(r"^load: ([\d.]+) s", lines, re.M)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("benchmark")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=501)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()

    peer = LlamaCpp(options.file, options.threads, options.prompt)
    long = long_prompt(peer, options.prompt)
    best, loads = {"ours": {}, "llama.cpp": {}}, {"ours": [], "llama.cpp": []}
    for _ in range(options.turns):
        our_rates, load = ours(options.benchmark, options.file, options.threads, options.prompt)
        loads["ours"].append(load)
        loads["llama.cpp"].append(LlamaCpp(options.file, options.threads, options.prompt, warmup=False).load)
        for name, found in [("ours", our_rates), ("llama.cpp", rates(peer, long))]:
            for figure, values in found.items():
                before = best[name].get(figure, (0.0, 0.0))
                best[name][figure] = tuple(map(max, zip(before, values)))
    print("%s, %d threads, tokens/s" % (options.file, options.threads))
    print("%-24s %10s %10s %6s   %28s" % ("", "ours", "llama.cpp", "ratio", "by processor time"))
    for figure, theirs in best["llama.cpp"].items():
        our = best["ours"].get(figure, (0.0, 0.0))
        row = (figure, our[0], theirs[0], our[0] / theirs[0], our[1], theirs[1], our[1] / theirs[1])
        print("%-24s %10.1f %10.1f %6.2f   %10.1f %10.1f %6.2f" % row)
    load, theirs = min(loads["ours"]), min(loads["llama.cpp"])
    print("load: ours %.2f s, llama.cpp %.2f s, its time to ours %.2f" % (load, theirs, theirs / load))


if __name__ == "__main__":
    main()
