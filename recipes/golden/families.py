"""The tiny model of each family, as a Hugging Face folder with seeded weights."""

import json
import shutil

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

import tokenizer
from common import ROOT, VOCAB, stream

_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
    "use_cache": True,
}


def _config(architecture, model_type, tied, **changes):
    head = {"architectures": [architecture], "model_type": model_type, "tie_word_embeddings": tied}
    return {**head, **_SHAPE, **changes}


CONFIGS = {
    "llama": _config(
        "LlamaForCausalLM", "llama", False, attention_bias=False, mlp_bias=False, rope_scaling=None, pretraining_tp=1
    ),
    "llama3": _config(
        "LlamaForCausalLM",
        "llama",
        True,
        attention_bias=False,
        mlp_bias=False,
        head_dim=16,
        eos_token_id=[2, 0],
        rope_scaling={
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 64,
            "rope_type": "llama3",
        },
    ),
    "llama-linear": _config(
        "LlamaForCausalLM", "llama", True, attention_bias=False, rope_scaling={"type": "linear", "factor": 4.0}
    ),
    "mistral": _config("MistralForCausalLM", "mistral", False, sliding_window=16),
    "qwen2": _config(
        "Qwen2ForCausalLM",
        "qwen2",
        True,
        rms_norm_eps=1e-6,
        rope_theta=1000000.0,
        sliding_window=16,
        use_sliding_window=False,
        max_window_layers=2,
    ),
    "qwen3": _config(
        "Qwen3ForCausalLM",
        "qwen3",
        True,
        rms_norm_eps=1e-6,
        attention_bias=False,
        head_dim=32,
        sliding_window=None,
        use_sliding_window=False,
        max_window_layers=2,
    ),
    "smollm3": _config(
        "SmolLM3ForCausalLM",
        "smollm3",
        True,
        num_hidden_layers=4,
        rms_norm_eps=1e-6,
        rope_theta=5000000.0,
        attention_bias=False,
        mlp_bias=False,
        no_rope_layer_interval=4,
        no_rope_layers=[1, 1, 1, 0],
        pad_token_id=2,
        sliding_window=None,
        use_sliding_window=False,
    ),
    "wide": _config(
        "LlamaForCausalLM",
        "llama",
        True,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=1,
        attention_bias=False,
        mlp_bias=False,
        rope_scaling=None,
    ),
}

# The real Qwen3 ships bf16; f16 is stored by older fine-tunes. The rest is float32.
DTYPES = {"qwen3": "bfloat16", "smollm3": "float16"}
SHARDED = {"mistral"}
# Written in the layout of transformers 5: `dtype`, `rope_parameters`, chat_template.jinja.
MODERN = {"qwen3"}

GENERATION = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
GENERATIONS = {
    "llama3": {"bos_token_id": 1, "eos_token_id": [2, 0], "do_sample": True, "temperature": 0.6, "top_p": 0.9},
    "qwen2": {
        **GENERATION,
        "do_sample": True,
        "repetition_penalty": 1.05,
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.8,
    },
}


def initial(model, name, shape):
    """A weight such that the model is far from degenerate: attention has contrast, layers outweigh the embedding, logits spread by about 2."""
    noise = stream("model", model, name).standard_normal(shape).astype(np.float32)
    if "norm" in name:
        centre = 1.5 if "q_norm" in name or "k_norm" in name else 1.0
        return centre + 0.25 * noise
    if name.endswith(".bias"):
        return 0.25 * noise
    if "embed_tokens" in name or "lm_head" in name:
        return 2.0 / np.sqrt(shape[1]) * noise
    gain = 1.5 if "q_proj" in name or "k_proj" in name else 1.0
    return gain / np.sqrt(shape[1]) * noise


def write_model(name, bpe):
    """Writes models/<name>: config, weights, generation settings and tokenizer."""
    folder = ROOT / "models" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = dict(CONFIGS[name], torch_dtype=DTYPES.get(name, "float32"))
    if name in MODERN:
        config["dtype"] = config.pop("torch_dtype")
        config["rope_parameters"] = {"rope_theta": config.pop("rope_theta"), "rope_type": "default"}
    _write(folder / "config.json", config)
    _write(folder / "generation_config.json", GENERATIONS.get(name, GENERATION))
    tokenizer.save(bpe, folder, template_in_file=name in MODERN)

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    tied = config["tie_word_embeddings"]
    dtype = getattr(torch, DTYPES.get(name, "float32"))
    tensors = {
        key: torch.from_numpy(initial(name, key, tuple(value.shape))).to(dtype)
        for key, value in empty.state_dict().items()
        if not (tied and key == "lm_head.weight")
    }
    if name in SHARDED:
        _write_shards(folder, tensors)
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _write_shards(folder, tensors):
    first = {key: value for key, value in tensors.items() if ".layers.1." not in key and key != "lm_head.weight"}
    second = {key: value for key, value in tensors.items() if key not in first}
    weight_map = {}
    for number, part in enumerate((first, second), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map.update({key: file for key in part})
    total = sum(value.numel() * value.element_size() for value in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write(folder / "model.safetensors.index.json", index)


def _write(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def load(folder, **changes):
    """The oracle's model: float32, eager attention, every weight taken from the file. `changes` replace keys of its config."""
    config = AutoConfig.from_pretrained(folder)
    for key, value in changes.items():
        setattr(config, key, value)
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval()
