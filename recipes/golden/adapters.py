"""PEFT adapters of every kind, made by `peft` itself and saved by `save_pretrained`, with seeded non-zero A and B."""

import json
import re
import shutil
import tempfile
import warnings

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model

import families
from common import ROOT, stream

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]


def _every_projection(model):
    return {(model, "all7"): {"r": 4, "lora_alpha": 8, "target_modules": ALL}}


# Each value: the LoraConfig's arguments; `dtype` is how the tensors are saved; `edit` replaces keys of the saved JSON, as a
# person or another tool would have written them.
SUPPORTED = {
    ("llama", "plain-qv"): {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.1},
    ("llama", "all7"): {"r": 4, "lora_alpha": 8, "target_modules": ALL},
    ("llama", "rslora"): {
        "r": 8,
        "lora_alpha": 12,
        "target_modules": ATTENTION,
        "use_rslora": True,
        "init_lora_weights": "gaussian",
    },
    # The first pattern that matches wins, in the order of the JSON, which is not the alphabet's: a reader that sorts
    # keys gets other ranks, and other scales without any error.
    ("llama", "patterns"): {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ALL,
        "rank_pattern": {
            "self_attn.q_proj": 3,
            "layers.1.self_attn.q_proj": 8,
            r"layers\.0\.mlp\..*": 6,
            "down_proj": 2,
        },
        "alpha_pattern": {"v_proj": 16, "layers.1.self_attn.v_proj": 1, "model.layers.[01].mlp.(gate|up)_proj": 5.5},
    },
    ("llama", "rslora-patterns"): {
        "r": 8,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "o_proj", "up_proj"],
        "use_rslora": True,
        "rank_pattern": {"^model.layers.0.self_attn.o_proj": 2, "up_proj": 5},
        "alpha_pattern": {"layers.1.*": 14},
    },
    ("llama", "exclude-list"): {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ALL,
        "exclude_modules": ["down_proj", "layers.0.self_attn.k_proj", "proj"],
    },
    ("llama", "exclude-regex"): {
        "r": 4,
        "lora_alpha": 10,
        "target_modules": "all-linear",
        "exclude_modules": r".*layers\.0\.mlp.*|.*\.k_proj",
    },
    ("llama", "layers-int"): {
        "r": 6,
        "lora_alpha": 12,
        "target_modules": ["q_proj", "v_proj", "up_proj"],
        "layers_to_transform": 1,
    },
    ("llama", "layers-list"): {
        "r": 6,
        "lora_alpha": 12,
        "target_modules": ["k_proj", "gate_proj", "down_proj"],
        "layers_to_transform": [0],
        "layers_pattern": "layers",
    },
    ("llama", "regex-targets"): {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": r"model\.layers\.\d+\.(?:self_attn\.[qo]|mlp\.(?!up)\w+)_proj",
    },
    ("llama", "all-linear"): {"r": 2, "lora_alpha": 6, "target_modules": "all-linear"},
    ("llama", "all-linear-literal"): {
        "r": 2,
        "lora_alpha": 6,
        "target_modules": "all-linear",
        "edit": {"target_modules": "all-linear"},
    },
    # On nn.Linear PEFT warns, sets the flag to false and saves false; older files and other tools keep true.
    ("llama", "fan-in-fan-out"): {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "o_proj", "down_proj"],
        "edit": {"fan_in_fan_out": True},
    },
    ("llama", "o-down"): {"r": 8, "lora_alpha": 8, "target_modules": ["o_proj", "down_proj"]},
    ("llama", "f16"): {"r": 8, "lora_alpha": 16, "target_modules": ATTENTION, "dtype": "float16"},
    ("llama", "bf16"): {"r": 4, "lora_alpha": 8, "target_modules": ALL, "dtype": "bfloat16"},
    ("llama", "alpha-float"): {"r": 5, "lora_alpha": 12.5, "target_modules": ["q_proj", "k_proj", "gate_proj"]},
    ("llama", "rank-1"): {"r": 1, "lora_alpha": 2, "target_modules": ["v_proj", "up_proj"]},
    **_every_projection("llama3"),
    **_every_projection("llama-linear"),
    **_every_projection("mistral"),
    **_every_projection("qwen2"),
    ("qwen2", "rslora"): {"r": 8, "lora_alpha": 10, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    **_every_projection("qwen3"),
    **_every_projection("smollm3"),
    **_every_projection("wide"),
}

# Kinds beyond plain low rank, each under its own prompts and scores (`scores/<model>-kinds.json`). `changed` moves the weights that
# PEFT copies into the file beside an adapter of the embedding or the head, as an author does who resized or replaced them.
KINDS = {
    ("llama", "dora"): {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], "use_dora": True},
    ("llama", "dora-all"): {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": ALL,
        "use_dora": True,
        "use_rslora": True,
        "rank_pattern": {"layers.1.mlp.up_proj": 2, "o_proj": 7},
        "dtype": "float16",
    },
    ("llama", "lora-bias"): {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "o_proj", "gate_proj", "down_proj"], "lora_bias": True},
    ("llama", "head"): {"r": 4, "lora_alpha": 8, "target_modules": ["lm_head", "v_proj"]},
    ("llama", "head-dora"): {"r": 4, "lora_alpha": 8, "target_modules": ["lm_head", "q_proj"], "use_dora": True, "changed": True, "dtype": "bfloat16"},
    ("llama", "embed"): {"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens", "q_proj"]},
    ("llama", "embed-dora"): {"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens", "lm_head", "k_proj"], "use_dora": True},
    ("llama", "save-head"): {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["lm_head"]},
    ("llama", "save-both"): {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["o_proj", "up_proj"],
        "modules_to_save": ["embed_tokens", "lm_head"],
        "use_dora": True,
        "dtype": "bfloat16",
    },
    ("llama", "rank-512"): {"r": 512, "lora_alpha": 16, "target_modules": ["q_proj"], "layers_to_transform": [1], "use_rslora": True, "dtype": "float16"},
    ("llama", "pissa-converted"): {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj", "up_proj"], "init_lora_weights": "pissa", "converted": True},
    ("llama3", "dora"): {"r": 4, "lora_alpha": 8, "target_modules": ["k_proj", "gate_proj"], "use_dora": True},
    ("llama3", "head"): {"r": 4, "lora_alpha": 8, "target_modules": ["lm_head", "q_proj"], "changed": True, "dtype": "bfloat16"},
    ("llama3", "embed"): {"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens", "v_proj"]},
    ("llama3", "save-head"): {"r": 4, "lora_alpha": 8, "target_modules": ["v_proj"], "modules_to_save": ["lm_head"], "dtype": "bfloat16"},
    ("llama3", "save-embed"): {"r": 4, "lora_alpha": 8, "target_modules": ["v_proj"], "modules_to_save": ["embed_tokens"], "dtype": "bfloat16"},
    ("qwen2", "bias-all"): {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "o_proj"], "bias": "all"},
    ("qwen2", "bias-lora-only"): {"r": 4, "lora_alpha": 8, "target_modules": ["v_proj"], "bias": "lora_only"},
    ("qwen2", "bias-dora"): {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "down_proj"], "bias": "all", "use_dora": True},
    ("qwen2", "bias-lora-bias"): {"r": 4, "lora_alpha": 8, "target_modules": ["k_proj", "o_proj"], "bias": "lora_only", "lora_bias": True},
}

# Valid PEFT adapters that this version must refuse; `reason` is the key (or tensor) that the refusal names.
LATER = {
    ("llama", "trainable-tokens"): {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj"],
        "trainable_token_indices": {"embed_tokens": [1, 2, 300]},
        "reason": "trainable_token_indices",
    },
    ("llama", "pissa"): {
        "r": 4,
        "lora_alpha": 4,
        "target_modules": ["q_proj", "v_proj"],
        "init_lora_weights": "pissa",
        "reason": "init_lora_weights",
    },
    ("llama", "alora"): {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "k_proj", "v_proj"],
        "alora_invocation_tokens": [1, 299, 85, 481, 86, 292, 86, 201],
        "reason": "alora_invocation_tokens",
    },
    ("llama3", "tied"): {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["embed_tokens", "v_proj"],
        "ensure_weight_tying": True,
        "reason": "ensure_weight_tying",
    },
}


def write_adapters():
    """Writes every folder below adapters/, kinds/ and later/, and later/expect.json."""
    shutil.rmtree(ROOT / "adapters", ignore_errors=True)
    for (model, name), spec in SUPPORTED.items():
        _save(model, name, dict(spec), ROOT / "adapters" / model / name)
    write_kinds()


def write_kinds():
    """Writes every folder below kinds/ and later/, and later/expect.json."""
    for room in ("kinds", "later"):
        shutil.rmtree(ROOT / room, ignore_errors=True)
    for (model, name), spec in KINDS.items():
        _save(model, name, dict(spec), ROOT / "kinds" / model / name)
    reasons = {}
    for (model, name), spec in LATER.items():
        spec = dict(spec)
        reasons[f"{model}/{name}"] = spec.pop("reason")
        _save(model, name, spec, ROOT / "later" / model / name)
    (ROOT / "later" / "expect.json").write_text(json.dumps(reasons, indent=1) + "\n", encoding="utf-8")


def make(base, name, spec, folder, base_name):
    """Gives `base` an adapter with seeded weights and saves it in `folder`. `spec` loses what is no argument of LoraConfig."""
    dtype, edit = spec.pop("dtype", "float32"), spec.pop("edit", {})
    changed, converted = spec.pop("changed", False), spec.pop("converted", False)
    torch.manual_seed(0)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
        warnings.simplefilter("ignore")
        model = get_peft_model(base, LoraConfig(task_type=TaskType.CAUSAL_LM, **spec)).eval()
        options = {}
        if converted:
            options["path_initial_model_for_weight_conversion"] = _keep_initial(model, scratch)
            _train_a_little(model, name)
        elif spec.get("init_lora_weights") != "pissa":
            seed_weights(model, name)
        if changed:
            _change_base(model, name)
        model.to(getattr(torch, dtype)).save_pretrained(folder, **options)
    (folder / "README.md").unlink(missing_ok=True)
    _settle_config(folder / "adapter_config.json", spec, edit, base_name)


def _keep_initial(model, scratch):
    """The adapter before training, as PEFT wants it kept for a later conversion."""
    config = model.peft_config["default"]
    kept, config.init_lora_weights = config.init_lora_weights, True
    model.save_pretrained(f"{scratch}/initial")
    config.init_lora_weights = kept
    return f"{scratch}/initial"


def _train_a_little(model, name):
    """Moves A and B by a part of what they are, as training would."""
    for key, weight in model.named_parameters():
        if weight.requires_grad:
            noise = torch.from_numpy(stream("adapter", name, key).standard_normal(tuple(weight.shape)).astype("float32"))
            with torch.no_grad():
                weight.add_(0.3 * weight.std() * noise)


def _change_base(model, name):
    """Moves embedding and head of the base below the adapter."""
    for key, weight in model.named_parameters():
        if key.endswith(("embed_tokens.base_layer.weight", "lm_head.base_layer.weight")):
            noise = torch.from_numpy(stream("adapter", name, key).standard_normal(tuple(weight.shape)).astype("float32"))
            with torch.no_grad():
                weight.add_(0.1 * noise)


def seed_weights(model, name):
    """Fills what training would have changed. A keeps its input's size; B makes a change of about a third of the base's output at scale 2."""
    for key, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        noise = torch.from_numpy(stream("adapter", name, key).standard_normal(tuple(weight.shape)).astype("float32"))
        with torch.no_grad():
            if "lora_embedding_A" in key:
                weight.copy_(noise)
            elif "lora_embedding_B" in key:
                weight.copy_(0.05 * noise)
            elif "lora_A" in key:
                weight.copy_(noise / weight.shape[1] ** 0.5)
            elif "lora_B" in key and key.endswith("bias"):
                weight.copy_(0.2 * noise)
            elif "lora_B" in key:
                weight.copy_(0.15 * noise / weight.shape[1] ** 0.5)
            else:
                weight.add_(0.1 * noise)


def _settle_config(path, spec, edit, base_name):
    """Undoes what differs from run to run or names this machine, and puts the patterns back into their own order."""
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base_name
    for key in ("target_modules", "exclude_modules"):
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    for key in ("rank_pattern", "alpha_pattern"):
        if key in spec:
            assert config[key] == spec[key]
            config[key] = spec[key]
    config.update(edit)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def attach(base, folder):
    """The oracle's base with the adapter read from disk; every tensor of the file must be used and every adapter weight set."""
    from safetensors import safe_open

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to True")
        warnings.filterwarnings("ignore", message=".*embedding layers.*")
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
        warnings.filterwarnings("ignore", message=".*lora_bias=True.*")
        model = PeftModel.from_pretrained(base, folder).eval()
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        saved = set(file.keys())
    state = {re.sub(r"(\.modules_to_save)?\.default", "", key): key for key in model.state_dict()}
    state = {key.replace("lora_magnitude_vector.weight", "lora_magnitude_vector"): full for key, full in state.items()}
    assert saved <= set(state), saved - set(state)
    missing = {key for key, full in state.items() if ".lora_" in full or ".modules_to_save." in full} - saved
    assert not missing, missing
    return model


def _save(model, name, spec, folder):
    base = families.load(ROOT / "models" / model)
    make(base, f"{model}/{name}", spec, folder, f"tunegate/golden-{model}")
