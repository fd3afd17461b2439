#!/usr/bin/env python3
"""Measures tunegate beside llama.cpp: same weights, threads, prompts and lengths, in turns, through both HTTP servers.

    python3 benches/servers/compare.py --llama-server PATH [--formats Q4_1 Q8_0 F16] [--rounds 5] [--json OUT.json]

Each round measures every workload on one server, then on the other; the table has medians and ranges of the rounds, and the
median of each round's ratio, so that what else the machine does falls on both. Needs the packages `gguf`, `numpy` and
`safetensors`, the demo model (`make model`) and a release build (`make build`).
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from servers import ADAPTERS, DEMO, PEERS, LlamaCpp, Tunegate, bench_adapters, prompt

STREAMS = 8
# (name, streams, different adapters, prompt tokens, answer tokens); one answer token measures reading alone.
WORKLOADS = [
    ("1 stream, base", 1, 0, 128, 128),
    ("8 streams, base", STREAMS, 0, 128, 128),
    ("8 streams, one adapter", STREAMS, 1, 128, 128),
    ("8 streams, 8 adapters", STREAMS, STREAMS, 128, 128),
    ("prompt of 1,024", 1, 0, 1024, 1),
]


def measure(server, workload, seed):
    """Tokens per second over all streams (read ones where one token is answered), and the slowest first token."""
    _, streams, adapters, length, answer = workload
    rng = random.Random(seed)
    results, faults = [], []

    def client(number, question):
        try:
            results.append(server.ask(question, number % adapters if adapters else None, answer))
        except (RuntimeError, OSError, ValueError) as fault:
            faults.append(fault)

    threads = [threading.Thread(target=client, args=(number, prompt(rng, length))) for number in range(streams)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - began
    if faults:
        sys.exit(str(faults[0]))
    tokens = sum(tokens for _, tokens in results)
    if tokens != streams * answer:
        sys.exit(f"{server.name} answered {tokens} tokens instead of {streams * answer}")
    done = length * streams if answer == 1 else tokens
    return {"tokens_per_second": done / seconds, "first_token_s": max(times[0] for times, _ in results)}


def prepared(formats):
    """The model in each format, and the adapters for the peer, made where they are not there."""
    PEERS.mkdir(parents=True, exist_ok=True)
    here = Path(__file__).parent
    bench_adapters(ADAPTERS, STREAMS)
    if not (PEERS / "loras").is_dir():
        subprocess.run([sys.executable, here / "loras.py", ADAPTERS, PEERS / "loras"], check=True)
    models = {}
    for name in formats:
        models[name] = DEMO if name == "Q4_1" else PEERS / f"SmolLM2-135M-Instruct.{name}.gguf"
        if not models[name].is_file():
            subprocess.run([sys.executable, here / "formats.py", DEMO, models[name], name], check=True)
    return models


def median_and_range(values, digits):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def main():
    parser = argparse.ArgumentParser(description="tunegate beside llama.cpp, in turns.")
    parser.add_argument("--llama-server", type=Path, required=True)
    parser.add_argument("--formats", nargs="+", default=["Q4_1", "Q8_0", "F16"], choices=["Q4_0", "Q4_1", "Q8_0", "F16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    models = prepared(arguments.formats)
    figures = []
    print("| format | workload | tunegate tok/s | llama.cpp tok/s | ratio | first token, s: tunegate / llama.cpp |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        for name, model in models.items():
            runs = {workload[0]: {"tunegate": [], "llama.cpp": []} for workload in WORKLOADS}
            for turn in range(arguments.rounds):
                starts = [lambda: Tunegate(model, arguments.threads, scratch), lambda: LlamaCpp(arguments.llama_server, model, arguments.threads, scratch, STREAMS)]
                for start in starts if turn % 2 == 0 else reversed(starts):
                    with start() as server:
                        measure(server, ("warm-up", STREAMS, STREAMS, 32, 4), turn)
                        for number, workload in enumerate(WORKLOADS):
                            runs[workload[0]][server.name].append(measure(server, workload, 100 * turn + number))
            for workload, by_server in runs.items():
                ours, theirs = by_server["tunegate"], by_server["llama.cpp"]
                rates = [[run["tokens_per_second"] for run in side] for side in (ours, theirs)]
                ratios = [one / other for one, other in zip(*rates)]
                firsts = [statistics.median(run["first_token_s"] for run in side) for side in (ours, theirs)]
                print(
                    f"| {name} | {workload} | {median_and_range(rates[0], 0)} | {median_and_range(rates[1], 0)} "
                    f"| {median_and_range(ratios, 2)} | {firsts[0]:.2f} / {firsts[1]:.2f} |",
                    flush=True,
                )
                figures.append({"format": name, "workload": workload, "tunegate": ours, "llama.cpp": theirs, "ratios": ratios})
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


main()
