"""GGUF files of the tiny models as llama.cpp's converter writes them, and the way back to an oracle in float32."""

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType as FileType
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import kquant
import tokenizer
from common import ROOT
from families import CONFIGS

_LEGACY = {
    "f32": (Type.F32, FileType.ALL_F32),
    "f16": (Type.F16, FileType.MOSTLY_F16),
    "bf16": (Type.BF16, FileType.MOSTLY_BF16),
    "q8_0": (Type.Q8_0, FileType.MOSTLY_Q8_0),
    "q4_0": (Type.Q4_0, FileType.MOSTLY_Q4_0),
    "q4_1": (Type.Q4_1, FileType.MOSTLY_Q4_1),
    "q5_0": (Type.Q5_0, FileType.MOSTLY_Q5_0),
    "q5_1": (Type.Q5_1, FileType.MOSTLY_Q5_1),
}
_K = {
    "q4_k": (Type.Q4_K, FileType.MOSTLY_Q4_K_S),
    "q5_k": (Type.Q5_K, FileType.MOSTLY_Q5_K_S),
    "q6_k": (Type.Q6_K, FileType.MOSTLY_Q6_K),
}
_TYPES = {**_LEGACY, **_K}

FILES = [
    *(("llama", kind) for kind in _LEGACY),
    *(("wide", kind) for kind in _K),
    *((model, "q8_0") for model in ("llama3", "llama-linear", "qwen2", "qwen3", "smollm3")),
]

# llama.cpp rotates neighbouring pairs in these architectures, so its converter reorders the rows of q and k.
_INTERLEAVED = {"llama", "smollm3"}

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def path_of(model, kind):
    """The file of a model in a quantization."""
    return ROOT / "gguf" / f"{model}-{kind}.gguf"


def _gguf_name(name):
    if name.startswith("model.layers."):
        _, _, layer, *middle, last = name.split(".")
        return f"blk.{layer}.{_NAMES['.'.join(middle)]}.{last}"
    return {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }[name]


def _interleave(rows, heads):
    """Within each head, from halves (i with i + d/2) to neighbours (2i with 2i + 1)."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(rows.shape)


def _halve(rows, heads):
    """The inverse of `_interleave`."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def _heads(config, name):
    """The number of heads whose rows the converter reorders, or None."""
    if config["model_type"] not in _INTERLEAVED:
        return None
    if ".q_proj." in name:
        return config["num_attention_heads"]
    return config["num_key_value_heads"] if ".k_proj." in name else None


def write_gguf(model, kind, bpe):
    """Writes gguf/<model>-<kind>.gguf from the weights of models/<model>."""
    config = CONFIGS[model]
    path = path_of(model, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    dtype, file_type = _TYPES[kind]
    writer = gguf.GGUFWriter(path, config["model_type"])
    _write_settings(writer, model, config, file_type)
    _write_tokenizer(writer, bpe)
    if config.get("rope_scaling") and config["rope_scaling"].get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_factors(config))
    for name, tensor in load_file(ROOT / "models" / model / "model.safetensors").items():
        rows = tensor.float().numpy()
        heads = _heads(config, name)
        if heads:
            rows = _interleave(rows, heads)
        # One-dimensional tensors stay in float32. The embedding of a Q4_K file is Q6_K, as llama.cpp's quantizer leaves it when it is the head too.
        wanted = Type.F32 if rows.ndim == 1 else Type.Q6_K if kind == "q4_k" and "embed" in name else dtype
        encoded = kquant.quantize(rows, wanted) if wanted in (t for t, _ in _K.values()) else gguf.quantize(rows, wanted)
        writer.add_tensor(_gguf_name(name), np.ascontiguousarray(encoded), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_settings(writer, model, config, file_type):
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(f"Golden {model}")
    writer.add_size_label("100K")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if "head_dim" in config:
        writer.add_key_length(head)
        writer.add_value_length(head)
    writer.add_file_type(file_type)
    writer.add_vocab_size(config["vocab_size"])
    if config["model_type"] in _INTERLEAVED:
        writer.add_rope_dimension_count(head)
    if (config.get("rope_scaling") or {}).get("type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config["rope_scaling"]["factor"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _write_tokenizer(writer, bpe):
    tokens = [bpe.id_to_token(index) for index in range(bpe.get_vocab_size())]
    special = set(tokenizer.SPECIAL)
    merges = [" ".join(pair) for pair in tokenizer.merges(bpe)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(bpe.token_to_id(tokenizer.BOS))
    writer.add_eos_token_id(bpe.token_to_id(tokenizer.EOS))
    writer.add_unk_token_id(bpe.token_to_id(tokenizer.UNKNOWN))
    writer.add_pad_token_id(bpe.token_to_id(tokenizer.EOS))
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(tokenizer.TEMPLATE)


def _llama3_factors(config):
    """What each rotary frequency is divided by, [head_dim / 2]: 1 for short wavelengths, `factor` for long ones, between them a blend."""
    scaling = config["rope_scaling"]
    size = config["head_dim"]
    wavelength = 2 * np.pi * config["rope_theta"] ** (np.arange(0, size, 2) / size)
    turns = scaling["original_max_position_embeddings"] / wavelength
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - blend) / scaling["factor"] + blend)).astype(np.float32)


def load(model, kind):
    """The oracle: the file's tensors decoded by gguf-py, rows of q and k put back, in a transformers model with float32 weights."""
    config = CONFIGS[model]
    back = {}
    for tensor in gguf.GGUFReader(path_of(model, kind)).tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        back[tensor.name] = np.array(values.reshape(tuple(reversed(tensor.shape.tolist()))), dtype=np.float32)
    factors = back.pop("rope_freqs.weight", None)
    oracle = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(ROOT / "models" / model), dtype=torch.float32, attn_implementation="eager"
    )
    state = {}
    for name in oracle.state_dict():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            state[name] = state["model.embed_tokens.weight"]
            continue
        rows = back.pop(_gguf_name(name))
        heads = _heads(config, name)
        state[name] = torch.from_numpy(_halve(rows, heads) if heads else rows)
    assert not back, list(back)
    if factors is not None:
        plain = config["rope_theta"] ** (-np.arange(0, config["head_dim"], 2) / config["head_dim"])
        assert np.allclose(plain / factors, oracle.model.rotary_emb.inv_freq.numpy(), rtol=1e-5)
    oracle.load_state_dict(state, strict=True)
    return oracle.eval()
