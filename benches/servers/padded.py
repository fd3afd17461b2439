#!/usr/bin/env python3
"""Pads a llama-shaped Hugging Face folder with zeros to a multiple of 256 in every width: the same function, in sizes that K-quants take.

    python3 benches/servers/padded.py FOLDER OUT

The hidden size grows, and heads are added whose weights are zero. A norm over more values, of which the new ones are zero, has a
smaller mean square: with a growth of g, weights are divided by √g and epsilon by g, so that it gives what it gave before.
Needs the packages `numpy` and `safetensors`.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

BLOCK = 256


def widths(config):
    """(hidden, heads, heads of keys) before and after; heads keep their size and their number for each head of keys."""
    hidden, heads, keys = (config[name] for name in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    wider = -(-hidden // BLOCK) * BLOCK
    # The other widths stay, and are told from those that grow by their size.
    others = {config["intermediate_size"], config["vocab_size"]}
    if others & {hidden, hidden // heads * keys} or config["intermediate_size"] % BLOCK or wider * keys % hidden:
        sys.exit("this shape cannot be padded")
    return (hidden, heads, keys), (wider, wider * heads // hidden, wider * keys // hidden)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    config = json.loads((source / "config.json").read_text())
    (hidden, heads, keys), (wider, more_heads, more_keys) = widths(config)
    head, growth = hidden // heads, wider / hidden
    larger = {hidden: wider, keys * head: more_keys * head}
    weights = load_file(source / "model.safetensors")
    for name, values in weights.items():
        padded = np.zeros([larger.get(size, size) for size in values.shape], np.float32)
        padded[tuple(slice(size) for size in values.shape)] = values
        weights[name] = padded / np.sqrt(np.float32(growth)) if values.ndim == 1 else padded
    config.update(
        hidden_size=wider, num_attention_heads=more_heads, num_key_value_heads=more_keys, head_dim=head,
        rms_norm_eps=config["rms_norm_eps"] / growth,
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, out / name)
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


main()
