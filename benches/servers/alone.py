#!/usr/bin/env python3
"""What tunegate promises about itself, measured through its HTTP server as ratios within one run.

    python3 benches/servers/alone.py [prefix] [long] [many] [fair] [neighbour] [--rounds 5] [--instructions avx2] [--json OUT.json]

prefix     4 requests that share 900 prompt tokens: all cold at once, and warm, against 4 that share nothing (last first token)
long       8 streams while a prompt of 4,000 tokens is read: 99th percentile between tokens, and the prompt's speed, against without
many       64 streams over 64 adapters against 64 over 8, 128 tokens in and 128 out (tokens per second)
fair       first token of one adapter while 64 requests of another wait beside those that fill every place, at the 95th percentile,
           against twice that of the same adapter alone and one step
neighbour  8 streams while another program keeps one core busy, against without (tokens per second)

Each part has a server of its own and an unmeasured round first. The model is SmolLM2-135M in Q4_1, the settings are the defaults.
Needs what `compare.py` needs; no peers.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import models
from measure import Load, gaps, median_and_range, quantile, throughput, together
from prompts import prompt
from results import LEVELS, Results, digest, instructions, version
from servers import Tunegate, end_on_request

MANY = models.ROOT / "target/bench-adapters-64"
FORMAT = "Q4_1"
# Requests that run at a time, by default.
PLACES = 64


def words(rng, length):
    return prompt(rng, length, models.SMALL)


def last_first_token(server, prompts):
    answers = Load(server, [(tokens, None, 4) for tokens in prompts]).join()
    return max(answer.times[0] for answer in answers) - min(answer.began for answer in answers)


def prefix(server, rng, turn):
    unshared = last_first_token(server, [words(rng, 920) for _ in range(4)])
    common = words(rng, 900)
    cold = last_first_token(server, [common + words(rng, 20) for _ in range(4)])
    warm = last_first_token(server, [common + words(rng, 20) for _ in range(4)])
    return {"warm / unshared": warm / unshared, "cold / unshared": cold / unshared, "unshared s": unshared}


def long(server, rng, turn):
    """The streams go on until the prompt is read, so that every gap that counts is one beside it."""
    streams = lambda answer: [(words(rng, 32), None, answer) for _ in range(8)]
    quiet_answers = Load(server, streams(200)).join()
    quiet = quantile(gaps(quiet_answers, *together(quiet_answers)), 99)
    alone = server.ask(words(rng, 4000), None, 1).first
    load = Load(server, streams(3000))
    load.wait_for(20)
    beside = server.ask(words(rng, 4000), None, 1)
    load.hang_up()
    during = quantile(gaps(load.join(), beside.began, beside.times[0]), 99)
    return {
        "p99 with / without": during / quiet,
        "prompt speed beside / alone": alone / beside.first,
        "p99 without ms": 1000 * quiet,
        "prompt alone s": alone,
    }


def many(server, rng, turn):
    requests = lambda adapters: [(words(rng, 128), number % adapters, 128) for number in range(64)]
    rates = {adapters: throughput(Load(server, requests(adapters)).join()) for adapters in ((8, 64) if turn % 2 else (64, 8))}
    return {"64 adapters / 8 adapters": rates[64] / rates[8], "8 adapters tok/s": rates[8]}


def fair(server, rng, turn):
    first = lambda: server.ask(words(rng, 128), 1, 4).first
    alone = quantile([first() for _ in range(20)], 95)
    # Twice as many as there are places, so that 64 of them wait at first, and at the end of what counts 32 still do.
    load = Load(server, [(words(rng, 128), 0, 64) for _ in range(2 * PLACES)])
    load.wait_for_any()
    among = []
    while load.running() > PLACES + PLACES // 2:
        among.append(first())
    answers = load.join()
    # What stands between two tokens of a running stream is a step.
    step = quantile(gaps(answers, min(answer.began for answer in answers), max(answer.times[-1] for answer in answers)), 50)
    slowest = quantile(among, 95)
    return {
        "p95 / (2 × alone + a step)": slowest / (2 * alone + step),
        "p95 ms": 1000 * slowest,
        "alone ms": 1000 * alone,
        "step ms": 1000 * step,
        "asked": len(among),
    }


def neighbour(server, rng, turn):
    requests = lambda: [(words(rng, 32), None, 128) for _ in range(8)]
    quiet = throughput(Load(server, requests()).join())
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        beside = throughput(Load(server, requests()).join())
    finally:
        other.kill()
        other.wait()
    return {"with / without": beside / quiet, "without tok/s": quiet}


PARTS = {part.__name__: part for part in (prefix, long, many, fair, neighbour)}


def main():
    parser = argparse.ArgumentParser(description="What tunegate promises about itself.")
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--tunegate", type=Path, default=models.ROOT / "target/release/tunegate")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--instructions", choices=LEVELS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    end_on_request()
    model = models.file(FORMAT)
    models.adapters(64, MANY)
    results = Results(arguments.json, arguments.threads, arguments.instructions)
    results.versions({"tunegate": version([arguments.tunegate, "--version"])})
    for name in arguments.parts or PARTS:
        entry = results.entry("alone", part=name, binary=digest(arguments.tunegate))
        with tempfile.TemporaryDirectory() as scratch:
            with Tunegate(arguments.tunegate, model, arguments.threads, Path(scratch), MANY, instructions(arguments)) as server:
                # A seed of its own, which no round has: what this one read is in the prefix cache.
                PARTS[name](server, random.Random(arguments.rounds), 0)
                for turn in range(arguments.rounds):
                    entry["rounds"].append(PARTS[name](server, random.Random(turn), turn))
                    results.save()
        for figure in entry["rounds"][0]:
            print(f"{name:10} {figure:28} {median_and_range([turn[figure] for turn in entry['rounds']], 2)}", flush=True)


main()
