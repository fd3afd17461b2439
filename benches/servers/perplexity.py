#!/usr/bin/env python3
"""Compares our perplexity with llama.cpp's on one text, for the same file: the same tokens, chunks and context.

    python3 benches/servers/perplexity.py --llama-perplexity PATH [--text FILE] [--formats F16 Q8_0 …] [--chunk 512]
        [--instructions avx2] [--json OUT.json]

As llama.cpp's own tool does it: the text is cut into chunks, each is read from an empty context, and the tokens of its second half
are scored. That tool is asked for its figure; ours come from `/v1/completions` with `echo` and `logprobs`. Q4_K_M is judged on the
widened small model, which computes the same function. Needs what `compare.py` needs.
"""

import argparse
import http.client
import json
import math
import os
import re
import subprocess
import tempfile
from pathlib import Path

import models
import rows
from results import LEVELS, Results, digest, instructions
from servers import Tunegate, end_on_request


# The model of random weights has nothing to say.
FORMATS = [row.figure for row in rows.PERPLEXITY]


def post(server, path, body):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    text = response.read()
    if response.status != 200:
        raise SystemExit(f"{path}: {response.status} {text[:300]}")
    return json.loads(text)


def ours(server, text, chunk):
    """(perplexity, scored tokens)"""
    tokens = post(server, "/tokenize", {"model": "base", "prompt": text, "add_special_tokens": False})["tokens"]
    scores = []
    for start in range(0, len(tokens) - chunk + 1, chunk):
        body = {"model": "base", "prompt": tokens[start : start + chunk], "max_tokens": 0, "echo": True, "logprobs": 1}
        logprobs = post(server, "/v1/completions", body)["choices"][0]["logprobs"]["token_logprobs"]
        if len(logprobs) != chunk:
            raise SystemExit(f"{len(logprobs)} scores for {chunk} tokens")
        scores += logprobs[chunk // 2 + 1 :]
    return math.exp(-sum(scores) / len(scores)), len(scores)


def theirs(program, model, text, chunk, threads):
    run = subprocess.run(
        [program, "-m", model, "-f", text, "-c", str(chunk), "-b", str(chunk), "-t", str(threads), "-tb", str(threads)],
        capture_output=True, text=True,
    )  # fmt: skip
    out = run.stdout + run.stderr
    counted, found = re.search(r"over (\d+) chunks", out), re.search(r"Final estimate: PPL = ([\d.]+)", out)
    if not found:
        raise SystemExit(f"{program} gave no figure: {out[-500:]}")
    return float(found[1]), int(counted[1]) * (chunk - 1 - chunk // 2)


def main():
    parser = argparse.ArgumentParser(description="Our perplexity and llama.cpp's on the same file.")
    parser.add_argument("--tunegate", type=Path, default=models.ROOT / "target/release/tunegate")
    parser.add_argument("--llama-perplexity", type=Path, required=True)
    parser.add_argument("--text", type=Path, default=models.ROOT / "benches/reading.txt")
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--instructions", choices=LEVELS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    end_on_request()
    results = Results(arguments.json, arguments.threads, arguments.instructions)
    for format_ in arguments.formats:
        model = models.file(format_)
        with tempfile.TemporaryDirectory() as scratch:
            none = Path(scratch) / "none"
            none.mkdir()
            with Tunegate(arguments.tunegate, model, arguments.threads, Path(scratch), none, instructions(arguments)) as server:
                our, count = ours(server, arguments.text.read_text(encoding="utf-8"), arguments.chunk)
        their, their_count = theirs(arguments.llama_perplexity, model, arguments.text, arguments.chunk, arguments.threads)
        if count != their_count:
            raise SystemExit(f"we scored {count} tokens and llama.cpp {their_count}")
        entry = results.entry("perplexity", format=format_, binary=digest(arguments.tunegate))
        entry["rounds"].append({"tunegate": our, "llama.cpp": their, "tokens": count})
        results.save()
        print(f"{format_:7} perplexity over {count} tokens: ours {our:.4f}, llama.cpp's {their:.4f}: {our / their:.5f}", flush=True)


main()
