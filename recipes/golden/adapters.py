"""PEFT adapters of every kind, made by `peft` itself and saved by `save_pretrained`, with seeded non-zero A and B."""

import json
import shutil
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

# Valid PEFT adapters that this version must refuse; `reason` is the key (or tensor) that the refusal names.
LATER = {
    ("llama", "dora"): {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "use_dora": True, "reason": "use_dora"},
    ("llama", "lora-bias"): {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "o_proj"], "lora_bias": True, "reason": "lora_bias"},
    ("qwen2", "bias-all"): {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "o_proj"], "bias": "all", "reason": "bias"},
    ("qwen2", "bias-lora-only"): {"r": 4, "lora_alpha": 8, "target_modules": ["v_proj"], "bias": "lora_only", "reason": "bias"},
    ("llama", "modules-to-save"): {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj"],
        "modules_to_save": ["lm_head"],
        "reason": "modules_to_save",
    },
    ("llama", "embed-tokens"): {"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens", "q_proj"], "reason": "embed_tokens"},
    ("llama", "lm-head"): {"r": 4, "lora_alpha": 8, "target_modules": ["lm_head", "v_proj"], "reason": "lm_head"},
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
}


def write_adapters():
    """Writes every folder below adapters/ and later/, and later/expect.json."""
    for room in ("adapters", "later"):
        shutil.rmtree(ROOT / room, ignore_errors=True)
    for (model, name), spec in SUPPORTED.items():
        _save(model, name, dict(spec), ROOT / "adapters" / model / name)
    reasons = {}
    for (model, name), spec in LATER.items():
        spec = dict(spec)
        reasons[f"{model}/{name}"] = spec.pop("reason")
        _save(model, name, spec, ROOT / "later" / model / name)
    (ROOT / "later" / "expect.json").write_text(json.dumps(reasons, indent=1) + "\n", encoding="utf-8")


def make(base, name, spec, folder, base_name):
    """Gives `base` an adapter with seeded weights and saves it in `folder`. `spec` loses its `dtype` and `edit`."""
    dtype, edit = spec.pop("dtype", "float32"), spec.pop("edit", {})
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base, LoraConfig(task_type=TaskType.CAUSAL_LM, **spec)).eval()
        if spec.get("init_lora_weights") != "pissa":
            seed_weights(model, name)
        model.to(getattr(torch, dtype)).save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    _settle_config(folder / "adapter_config.json", spec, edit, base_name)


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
        model = PeftModel.from_pretrained(base, folder).eval()
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        saved = set(file.keys())
    used = {key.replace(".default", "") for key in model.state_dict() if ".lora_" in key}
    assert saved == used, saved ^ used
    return model


def _save(model, name, spec, folder):
    base = families.load(ROOT / "models" / model)
    make(base, f"{model}/{name}", spec, folder, f"tunegate/golden-{model}")
