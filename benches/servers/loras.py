#!/usr/bin/env python3
"""Writes PEFT adapters of a llama-shaped model as llama.cpp's LoRA files.

    python3 benches/servers/loras.py ADAPTERS OUT MODEL

Every subfolder of ADAPTERS becomes OUT/<name>.gguf; MODEL is the Hugging Face folder that they are made for. Format: llama.cpp's
`convert_lora_to_gguf.py` and `llama-adapter.cpp`. Needs the packages `gguf`, `numpy` and `safetensors`.
"""

import json
import sys
from pathlib import Path

import gguf
from safetensors.numpy import load_file

from layout import gguf_name, heads_of, interleaved


def convert(folder, target, model):
    config = json.loads((folder / "adapter_config.json").read_text())
    part = target.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(config["lora_alpha"]))
    for name, values in sorted(load_file(folder / "adapter_model.safetensors").items()):
        module, half = name.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".", 1)
        heads = heads_of(f"{module}.weight", model)
        # B's rows are the module's.
        values = interleaved(values, heads) if heads and half == "lora_B" else values
        writer.add_tensor(f"{gguf_name(f'{module}.weight')}.{half.lower()}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(target)


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    source, out, model = Path(sys.argv[1]), Path(sys.argv[2]), json.loads((Path(sys.argv[3]) / "config.json").read_text())
    out.mkdir(parents=True, exist_ok=True)
    for folder in sorted(path.parent for path in source.glob("*/adapter_config.json")):
        convert(folder, out / f"{folder.name}.gguf", model)


main()
