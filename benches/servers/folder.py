#!/usr/bin/env python3
"""Writes a llama-shaped GGUF file as a Hugging Face folder of float32 weights: what servers read that know no GGUF.

    python3 benches/servers/folder.py IN.gguf OUT

Weights are decoded, and the rows of q and k put back into Hugging Face's order; the tokenizer is written as `tokenizer.json`.
Needs the packages `gguf`, `numpy` and `safetensors`.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file

from layout import folder_name, halved, heads_of

CONTROL = 3


def config_of(field, tied):
    """config.json of a llama, from the file's settings."""
    llama = lambda name: field(f"llama.{name}")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": llama("embedding_length"),
        "intermediate_size": llama("feed_forward_length"),
        "num_hidden_layers": llama("block_count"),
        "num_attention_heads": llama("attention.head_count"),
        "num_key_value_heads": llama("attention.head_count_kv"),
        "max_position_embeddings": llama("context_length"),
        "rms_norm_eps": float(f"{llama('attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": llama("rope.freq_base"),
        "rope_scaling": None,
        "vocab_size": llama("vocab_size"),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "pad_token_id": field("tokenizer.ggml.padding_token_id"),
        "torch_dtype": "float32",
    }


def tokenizer_of(field):
    """tokenizer.json of a byte-level BPE whose pre-tokenizer is SmolLM2's: single digits, then GPT-2's split."""
    if (field("tokenizer.ggml.model"), field("tokenizer.ggml.pre")) != ("gpt2", "smollm"):
        sys.exit("only SmolLM2's tokenizer is known here")
    tokens, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    special = [number for number, kind in enumerate(kinds) if kind == CONTROL]
    plain = {"normalized": False, "single_word": False, "lstrip": False, "rstrip": False, "special": True}
    bytes_of = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": tokens[number], **plain} for number in special],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, bytes_of]},
        "post_processor": None,
        "decoder": bytes_of,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in field("tokenizer.ggml.merges")],
        },
    }


def tokenizer_config_of(field):
    tokens = field("tokenizer.ggml.tokens")
    named = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": field("llama.context_length"),
        "clean_up_tokenization_spaces": False,
        **{name: tokens[field(f"tokenizer.ggml.{short}_token_id")] for name, short in named.items()},
        "chat_template": field("tokenizer.chat_template"),
    }


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_texts(out, config, field):
    """Everything of a folder but the weights."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", config)
    write_json(out / "generation_config.json", {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")})
    write_json(out / "tokenizer.json", tokenizer_of(field))
    write_json(out / "tokenizer_config.json", tokenizer_config_of(field))


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    reader, out = gguf.GGUFReader(sys.argv[1]), Path(sys.argv[2])
    field = lambda name: reader.fields[name].contents()
    config = config_of(field, all(tensor.name != "output.weight" for tensor in reader.tensors))
    weights = {}
    for tensor in reader.tensors:
        rows = np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        rows = rows.reshape(tuple(reversed(tensor.shape.tolist())))
        name = folder_name(tensor.name)
        heads = heads_of(name, config)
        weights[name] = np.ascontiguousarray(halved(rows, heads) if heads else rows)
    write_texts(out, config, field)
    # The weights last: a folder that has them is whole.
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
