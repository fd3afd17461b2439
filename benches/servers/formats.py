#!/usr/bin/env python3
"""Writes a llama-shaped Hugging Face folder as a GGUF file in one format: the same model for every server and every format.

    python3 benches/servers/formats.py FOLDER OUT.gguf F32|F16|BF16|Q8_0|Q5_0|Q5_1|Q4_0|Q4_1|Q4_K_M

Matrices are encoded from float32, one-dimensional tensors stay in float32, and the rows of q and k are put into llama.cpp's
order. Every matrix has the format that is named; Q4_K_M is llama.cpp's mixture of Q4_K and Q6_K. Needs the packages `gguf`,
`numpy` and `safetensors`.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType as FileType
from safetensors import safe_open

from layout import gguf_name, heads_of, interleaved

sys.path.append(str(Path(__file__).resolve().parent.parent.parent / "recipes/golden"))
import kquant  # noqa: E402

FILE_TYPES = {
    "F32": FileType.ALL_F32,
    "F16": FileType.MOSTLY_F16,
    "BF16": FileType.MOSTLY_BF16,
    "Q8_0": FileType.MOSTLY_Q8_0,
    "Q5_0": FileType.MOSTLY_Q5_0,
    "Q5_1": FileType.MOSTLY_Q5_1,
    "Q4_0": FileType.MOSTLY_Q4_0,
    "Q4_1": FileType.MOSTLY_Q4_1,
    "Q4_K_M": FileType.MOSTLY_Q4_K_M,
}
CONTROL, NORMAL = 3, 1


def type_of(name, rows, wanted, layers):
    """The type of one tensor."""
    if rows.ndim == 1:
        return Type.F32
    if wanted != "Q4_K_M":
        return Type[wanted]
    if name in ("token_embd.weight", "output.weight"):
        return Type.Q6_K
    if ".attn_v." in name or ".ffn_down." in name:
        # llama.cpp's rule: the first and last eighth of the layers, and every third between them.
        layer = int(name.split(".")[1])
        eighth = layers // 8
        if layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2:
            return Type.Q6_K
    return Type.Q4_K


def encoded(rows, kind):
    if kind not in (Type.Q4_K, Type.Q6_K):
        return np.ascontiguousarray(gguf.quantize(rows, kind))
    # In parts: the encoder's arrays are many times as large as what it encodes.
    return np.concatenate([kquant.quantize(part, kind) for part in np.array_split(rows, max(1, rows.size >> 23))])


def write_settings(writer, folder, config, file_type):
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(folder.name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def write_tokenizer(writer, folder, config):
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    vocabulary, special = tokenizer["model"]["vocab"], {token["id"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.get))
    writer.add_token_types([CONTROL if number in special else NORMAL for number in range(len(vocabulary))])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_unk_token_id(vocabulary[settings["unk_token"]])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(settings["chat_template"])


def convert(folder, target, wanted):
    config = json.loads((folder / "config.json").read_text())
    # Under another name until it is whole: a run that was cut short leaves no half a model.
    part = target.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "llama", use_temp_file=True)
    write_settings(writer, folder, config, FILE_TYPES[wanted])
    write_tokenizer(writer, folder, config)
    with safe_open(folder / "model.safetensors", "np") as weights:
        for name in weights.keys():
            rows = weights.get_tensor(name).astype(np.float32)
            heads = heads_of(name, config)
            rows = interleaved(rows, heads) if heads else rows
            kind = type_of(gguf_name(name), rows, wanted, config["num_hidden_layers"])
            writer.add_tensor(gguf_name(name), encoded(rows, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(target)


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[3] not in FILE_TYPES:
        sys.exit(__doc__)
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
