#!/usr/bin/env python3
"""Our perplexity beside llama.cpp's, on the same file and text: ours may be at most 1.005 times theirs.

    python3 benches/perplexity.py LLAMA_PERPLEXITY BINARY MODEL.gguf... [--text FILE] [--json FILE]

Both read the text in windows of 512 tokens, each without what was before it, and count the second half of every window
(`llama-perplexity -c 512`). The adapters that the formats of `scripts/make-formats` have are not used.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile

WINDOW, WINDOWS, BAR = 512, 20, 1.005
TEXT = pathlib.Path(__file__).resolve().parent / "reading.txt"


def theirs(binary, model, text):
    command = [binary, "-m", model, "-f", text, "-c", str(WINDOW), "-b", str(WINDOW), "--chunks", str(WINDOWS)]
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"Final estimate: PPL = (\S+)", done.stdout + done.stderr)
    if done.returncode or not found:
        sys.exit(f"llama-perplexity failed on {model}:\n{done.stderr[-2000:]}")
    return float(found[1])


def ours(binary, model, text):
    tokens = str((WINDOW - 1) * WINDOWS)
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [binary, "bench", "numerics", model, "--text", text, "--window", str(WINDOW), "--tokens", tokens]
        done = subprocess.run([*command, "--json", file.name], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        # A gate that does not hold is for `make numerics` to say; the figures are written all the same.
        figures = file.read()
    if not figures:
        sys.exit(f"tunegate failed on {model}: {done.stderr}")
    return json.loads(figures)[0]["figures"]["second_half_perplexity"]


def main():
    parser = argparse.ArgumentParser(description="Our perplexity beside llama.cpp's.")
    parser.add_argument("llama_perplexity")
    parser.add_argument("binary")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--text", default=TEXT)
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    rows = []
    for model in arguments.models:
        pair = ours(arguments.binary, model, arguments.text), theirs(arguments.llama_perplexity, model, arguments.text)
        rows.append({"model": model, "ours": pair[0], "llama_cpp": pair[1], "ratio": pair[0] / pair[1]})
        print(f"{model}: ours {pair[0]:.4f}, llama.cpp {pair[1]:.4f}, ratio {pair[0] / pair[1]:.5f}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    beyond = [row["model"] for row in rows if not row["ratio"] <= BAR]
    if beyond:
        sys.exit(f"beyond {BAR}: {', '.join(beyond)}")


main()
