#!/usr/bin/env python3
"""What tunegate promises about itself, measured through its HTTP server as ratios within one run.

    python3 benches/servers/alone.py [prefix] [long] [many] [fair] [neighbour] [memory] [--rounds 5] [--json OUT.json]

prefix     4 requests that share 900 prompt tokens: all cold at once, and warm, against 4 that share nothing (last first token)
long       8 streams while a prompt of 4,000 tokens is read: 99th percentile between tokens, and the prompt's speed, against without
many       64 streams over 64 adapters against 64 over 8 (tokens per second)
fair       first token of one adapter while 64 requests of another are under way, against alone (95th percentile)
neighbour  8 streams while another program keeps one core busy, against without (tokens per second)
memory     proportional set size with the base and 16 adapters

Needs the demo model (`make model`) and a release build (`make build`).
"""

import argparse
import json
import multiprocessing
import os
import random
import re
import statistics
import tempfile
import threading
import time
from pathlib import Path

from servers import DEMO, PEERS, Tunegate, bench_adapters, prompt

MANY = PEERS / "adapters-64"


class Load:
    """Requests under way in threads of their own; (times, tokens) of each when they are joined."""

    def __init__(self, server, requests):
        self.results = [None] * len(requests)
        self.threads = []
        for number, request in enumerate(requests):
            thread = threading.Thread(target=self.run, args=(server, number, request))
            thread.start()
            self.threads.append(thread)

    def run(self, server, number, request):
        self.results[number] = server.ask(*request)

    def join(self):
        for thread in self.threads:
            thread.join()
        if None in self.results:
            raise SystemExit("a request failed: see above")
        return self.results


def last_first_token(server, prompts):
    return max(times[0] for times, _ in Load(server, [(tokens, None, 4) for tokens in prompts]).join())


def throughput(server, requests):
    began = time.monotonic()
    results = Load(server, requests).join()
    return sum(tokens for _, tokens in results) / (time.monotonic() - began)


def gaps(results):
    return [later - earlier for times, _ in results for earlier, later in zip(times, times[1:])]


def quantile(values, share):
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * share // 100) - 1)]


def prefix(server, rng):
    unshared = last_first_token(server, [prompt(rng, 920) for _ in range(4)])
    common = prompt(rng, 900)
    asks = [common + prompt(rng, 20) for _ in range(4)]
    cold = last_first_token(server, asks)
    warm = last_first_token(server, [common + prompt(rng, 20) for _ in range(4)])
    return {"cold / unshared": cold / unshared, "warm / unshared": warm / unshared, "unshared s": unshared}


def long(server, rng):
    streams = lambda: [(prompt(rng, 32), None, 200) for _ in range(8)]
    quiet = quantile(gaps(Load(server, streams()).join()), 99)
    alone, _ = server.ask(prompt(rng, 4000), None, 1)
    load = Load(server, streams())
    time.sleep(0.5)
    beside, _ = server.ask(prompt(rng, 4000), None, 1)
    during = quantile(gaps(load.join()), 99)
    return {"p99 with / without": during / quiet, "prompt speed beside / alone": alone[0] / beside[0], "p99 without ms": 1000 * quiet}


def many(server, rng):
    requests = lambda adapters: [(prompt(rng, 32), number % adapters, 64) for number in range(64)]
    throughput(server, requests(64))
    eight, all_of_them = throughput(server, requests(8)), throughput(server, requests(64))
    return {"64 adapters / 8 adapters": all_of_them / eight, "8 adapters tok/s": eight}


def fair(server, rng):
    first = lambda: server.ask(prompt(rng, 128), 1, 4)[0][0]
    first()
    alone = quantile([first() for _ in range(8)], 95)
    load = Load(server, [(prompt(rng, 128), 0, 64) for _ in range(64)])
    time.sleep(0.3)
    among = []
    while sum(thread.is_alive() for thread in load.threads) > 32:
        among.append(first())
    load.join()
    return {"p95 among 64 / alone": quantile(among, 95) / alone, "alone ms": 1000 * alone, "asked": len(among)}


def busy():
    while True:
        pass


def neighbour(server, rng):
    requests = lambda: [(prompt(rng, 32), None, 128) for _ in range(8)]
    quiet = throughput(server, requests())
    other = multiprocessing.Process(target=busy, daemon=True)
    other.start()
    beside = throughput(server, requests())
    other.terminate()
    other.join()
    return {"with / without": beside / quiet, "without tok/s": quiet}


def memory(server, rng):
    for adapter in range(16):
        server.ask(prompt(rng, 16), adapter, 2)
    text = Path(f"/proc/{server.process.pid}/smaps_rollup").read_text()
    return {"Pss MiB": int(re.search(r"^Pss:\s+(\d+) kB", text, re.M)[1]) / 1024}


PARTS = {part.__name__: part for part in (prefix, long, many, fair, neighbour, memory)}


def main():
    parser = argparse.ArgumentParser(description="What tunegate promises about itself.")
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    bench_adapters(MANY, 64)
    figures = {}
    print("| part | figure | median (range) |\n|---|---|---|")
    for name in arguments.parts or PARTS:
        rounds = []
        with tempfile.TemporaryDirectory() as scratch:
            with Tunegate(DEMO, arguments.threads, Path(scratch), adapters=MANY) as server:
                for turn in range(1 if name == "memory" else arguments.rounds):
                    rounds.append(PARTS[name](server, random.Random(turn)))
        figures[name] = rounds
        for figure in rounds[0]:
            values = [found[figure] for found in rounds]
            print(f"| {name} | {figure} | {statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f}) |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


main()
