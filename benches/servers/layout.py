"""How a llama-shaped model lies in a Hugging Face folder and in a GGUF file: names, and the order of rows in q and k."""

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_BACK = {short: long for long, short in NAMES.items()}
_BACK_OUTSIDE = {short: long for long, short in OUTSIDE.items()}


def gguf_name(name):
    """The GGUF name of a tensor of a folder."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, _, layer, *module, last = name.split(".")
    return f"blk.{layer}.{NAMES['.'.join(module)]}.{last}"


def folder_name(name):
    """The folder's name of a tensor of a GGUF file."""
    if name in _BACK_OUTSIDE:
        return _BACK_OUTSIDE[name]
    _, layer, module, last = name.split(".")
    return f"model.layers.{layer}.{_BACK[module]}.{last}"


def heads_of(name, config):
    """How many heads' rows llama.cpp reorders in this tensor (the folder's name), or None."""
    if ".q_proj." in name:
        return config["num_attention_heads"]
    return config["num_key_value_heads"] if ".k_proj." in name else None


def interleaved(rows, heads):
    """llama.cpp rotates neighbouring pairs: within each head, rows i and i + d/2 become 2i and 2i + 1."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(rows.shape)


def halved(rows, heads):
    """The inverse of `interleaved`."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(rows.shape)
