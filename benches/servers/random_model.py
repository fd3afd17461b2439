#!/usr/bin/env python3
"""Writes a llama of about 1B parameters with random weights, to be timed and not to be believed.

    python3 benches/servers/random_model.py FOLDER OUT

FOLDER lends its tokenizer and settings. Weights are seeded, in float16, of a size that keeps activations finite. Needs the packages
`numpy` and `safetensors`.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HIDDEN, LAYERS, FFN, HEADS, KEY_HEADS, HEAD = 2048, 16, 8192, 32, 8, 64
LAYER = {
    "self_attn.q_proj": (HEADS * HEAD, HIDDEN),
    "self_attn.k_proj": (KEY_HEADS * HEAD, HIDDEN),
    "self_attn.v_proj": (KEY_HEADS * HEAD, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD),
    "mlp.gate_proj": (FFN, HIDDEN),
    "mlp.up_proj": (FFN, HIDDEN),
    "mlp.down_proj": (HIDDEN, FFN),
}


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    config = json.loads((source / "config.json").read_text())
    config.update(
        hidden_size=HIDDEN, intermediate_size=FFN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS, head_dim=HEAD, torch_dtype="float16",
    )  # fmt: skip
    rng = np.random.default_rng(1)
    matrix = lambda rows, columns: (rng.standard_normal((rows, columns), np.float32) * columns**-0.5).astype(np.float16)
    weights = {"model.embed_tokens.weight": matrix(config["vocab_size"], HIDDEN), "model.norm.weight": np.ones(HIDDEN, np.float16)}
    for layer in range(LAYERS):
        place = f"model.layers.{layer}."
        weights |= {f"{place}{name}.weight": matrix(*shape) for name, shape in LAYER.items()}
        weights |= {f"{place}{name}.weight": np.ones(HIDDEN, np.float16) for name in ("input_layernorm", "post_attention_layernorm")}
    out.mkdir(parents=True, exist_ok=True)
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, out / name)
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


main()
