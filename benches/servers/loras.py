#!/usr/bin/env python3
"""Writes PEFT adapters of a llama-shaped model as llama.cpp's LoRA files.

    python3 benches/servers/loras.py FOLDER OUT [HEADS KV_HEADS]

Every subfolder of FOLDER becomes OUT/<name>.gguf. Format: llama.cpp's `convert_lora_to_gguf.py` and `llama-adapter.cpp`.
Needs the packages `gguf`, `numpy` and `safetensors`.
"""

import json
import sys
from pathlib import Path

import gguf
from safetensors.numpy import load_file

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def interleaved(rows, heads):
    """llama.cpp rotates neighbouring pairs: within each head, rows i and i + d/2 become 2i and 2i + 1."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(rows.shape)


def convert(folder, target, heads, kv_heads):
    config = json.loads((folder / "adapter_config.json").read_text())
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(config["lora_alpha"]))
    for name, values in sorted(load_file(folder / "adapter_model.safetensors").items()):
        _, _, _, _, layer, *module, half, _ = name.split(".")
        module = ".".join(module)
        if half == "lora_B" and module in ("self_attn.q_proj", "self_attn.k_proj"):
            values = interleaved(values, heads if "q_proj" in module else kv_heads)
        writer.add_tensor(f"blk.{layer}.{NAMES[module]}.weight.{half.lower()}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    if len(sys.argv) not in (3, 5):
        sys.exit(__doc__)
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    heads, kv_heads = (int(count) for count in sys.argv[3:5] or ("9", "3"))
    out.mkdir(parents=True, exist_ok=True)
    for folder in sorted(path.parent for path in source.glob("*/adapter_config.json")):
        convert(folder, out / f"{folder.name}.gguf", heads, kv_heads)


main()
