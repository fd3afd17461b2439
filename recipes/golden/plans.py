"""Writes plans.json: which modules PEFT changes, and with which rank, alpha and scale.

    python recipes/golden/plans.py

`folders`: for every adapter below adapters/, as PEFT reads the folder; `kinds`: the same below kinds/. `configs`: configurations over a llama of
twelve layers, some written by hand and the rest drawn from a seeded stream, as PEFT applies them, or the error that it
raises. `patterns`: what Python's `re` says of single patterns.
"""

import json
import re
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from common import ROOT, stream, write_json

LAYERS = 12
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
DRAWN = 200

BY_HAND = [
    {"target_modules": ["q_proj", "v_proj"]},
    {"target_modules": None},
    {"target_modules": []},
    {"target_modules": ""},
    {"target_modules": "ALL-Linear"},
    {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
    {"target_modules": "all-linear", "layers_to_transform": [1]},
    {"target_modules": ["q_proj"], "layers_pattern": "layers"},
    {"target_modules": ["q_proj"], "layers_pattern": ["blocks", "layers"], "layers_to_transform": [1, 11]},
    {"target_modules": ["q_proj"], "layers_pattern": ["blocks"], "layers_to_transform": [1, 11]},
    {"target_modules": ["q_proj"], "layers_pattern": "", "layers_to_transform": 0},
    {"target_modules": ["q_proj"], "layers_pattern": "layers|x", "layers_to_transform": 3},
    {"target_modules": ["q_proj"], "layers_pattern": "lay.*", "layers_to_transform": 3},
    {"target_modules": ["q_proj"], "layers_to_transform": []},
    {"target_modules": ["model.layers.0.self_attn.q_proj", "k_proj"], "layers_to_transform": [5]},
    {"target_modules": ["layers.1.self_attn.q_proj", "1.self_attn.k_proj"]},
    {"target_modules": ["mlp"]},
    {"target_modules": ["embed_tokens", "q_proj"]},
    {"target_modules": ["lm_head"]},
    {"target_modules": ["norm"]},
    {"target_modules": r".*\.(q|v)_proj"},
    {"target_modules": r"q_proj"},
    {"target_modules": r"model\.layers\.(?!0\b)\d+\.self_attn\.q_proj"},
    {"target_modules": r"(?i).*\.Q_PROJ"},
    {"target_modules": r".*layers.*"},
    {"target_modules": ["q_proj"], "exclude_modules": "q_proj"},
    {"target_modules": ["q_proj"], "exclude_modules": r".*\.1?0\..*"},
    {"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["mlp.up_proj", "0.self_attn.q_proj"]},
    {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 3, ".*": 5}, "alpha_pattern": {"v_proj": 7}},
    {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {".*": 5, "q_proj": 3}},
    {"target_modules": ["q_proj"], "rank_pattern": {"1.self_attn.q_proj": 3}},
    {"target_modules": ["q_proj"], "rank_pattern": {r"layers\.(\d)\3\..*": 3}},
    {"target_modules": ["q_proj"], "rank_pattern": {"k)|(model.layers.1.*": 3}},
    {"target_modules": ["q_proj"], "rank_pattern": {"_proj": 3}},
    {"target_modules": ["q_proj"], "rank_pattern": {"": 3}},
    {"target_modules": ["q_proj"], "alpha_pattern": {"^model.layers.2.self_attn.q_proj": 0.5}},
    {"target_modules": ["q_proj"], "r": 3, "lora_alpha": 7, "use_rslora": True},
    {"target_modules": ["q_proj"], "r": 3, "lora_alpha": 0.1},
    {"target_modules": ["q_proj"], "r": 0},
    {"target_modules": ["q_proj"], "r": -4},
    {"target_modules": ["q_proj"], "rank_pattern": {"q_proj": 0}},
    {"target_modules": ["q_proj"], "fan_in_fan_out": True},
    {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
    {"target_modules": ["q_proj"], "rank_pattern": {"(": 3}},
    {"target_modules": "("},
]

PATTERNS = [
    "q_proj", "self_attn.q_proj", "attn.q_proj", "_proj", "q_pro", ".*q_proj", ".*.q_proj", "[kq]_proj", "^q_proj", "q_proj$",
    "(q|k)_proj", "q_proj|k_proj", "layers.0.*", r"layers\.0\..*", r"layers\.\d+\..*", r"layers\.(?:0|11)\..*", r"\w+",
    r"(?!q)\w+_proj", r"(?<=self_attn\.)q_proj", r"(?<!mlp\.)\w+_proj", r"(?P<x>q)_proj", r"(?:self_attn|mlp)\.\w+", r"\bq_proj\b",
    r"\Aq_proj", r"q_proj\Z", "[^q]_proj", "[]q]_proj", "[^]q]_proj", "[a-z]_proj", r"[\w.]+", r"[q\-k]_proj", "[-q]_proj", "[q-]_proj",
    "q_proj{1}", "q{1,2}_proj", "q{,2}_proj", "q{1_proj", "q++_proj", "q*?_proj", "(?>q)_proj", "(?i:Q)_proj", "(?x:q _ proj)",
    r"(\w)\1_proj", r"model\.layers\.(\d)\1\..*", r"(?P<d>\d)(?P=d)\.self_attn.*", r"\x71_proj", r"\u0071_proj", r"\q_proj", r"\_proj",
    r"\<q_proj", r"\pL", r"\Qq\E", "[a&&b]_proj", "[[:alpha:]]_proj", "(?<n>q)_proj", "(?U)q.*", "q_proj(?#comment)", "(", ")", "*", "+q", "q**",
    "a|", "|q_proj", "", ".", ".*", "(?s:.*)", r"\d", r"\D+", r"\S+", r"model.*", r"lm_head", r"q)|(k", "q_proj\n", "Q_PROJ", r"\.q_proj",
    r"[\d]+\.self_attn\.q_proj", "[0-9]+.self_attn.q_proj", "1{2}.self_attn.q_proj", "(?=q)q_proj", "(?!)", r"\b", r"q\B_proj", "é_proj",
]  # fmt: skip
PATHS = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.11.self_attn.q_proj",
    "model.layers.1.self_attn.k_proj",
    "model.layers.1.mlp.up_proj",
    "q_proj",
    "lm_head",
]


def tiny():
    """The network alone, without values: what PEFT does to it depends on its modules only."""
    config = LlamaConfig(
        vocab_size=32, hidden_size=8, intermediate_size=12, num_hidden_layers=LAYERS, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def plan(model):
    """module path → [rank, alpha, scale] of every layer that PEFT changed."""
    changed = {}
    for path, module in model.base_model.model.named_modules():
        if isinstance(module, LoraLayer):
            changed[path] = [module.r["default"], module.lora_alpha["default"], module.scaling["default"]]
    return changed


def draw(random):
    """One configuration; most are such that PEFT accepts them."""

    def some(items, least=1):
        count = random.integers(least, min(len(items), 4), endpoint=True)
        return [str(item) for item in random.choice(items, size=count, replace=False)]

    ends = PROJECTIONS + [f"self_attn.{p}" for p in PROJECTIONS[:4]] + [f"mlp.{p}" for p in PROJECTIONS[4:]]
    ends += [f"layers.{layer}.self_attn.q_proj" for layer in (0, 1, 10, 11)]
    regexes = [
        r".*\.(q|k)_proj", r".*\.layers\.[0-5]\..*_proj", r"model\.layers\.1\d?\.(self_attn|mlp)\.(o|down)_proj",
        r".*(?<!up|wn)_proj", r".*attn.*", r"(.*\.)?up_proj",
    ]  # fmt: skip
    tails = ends + [
        r"layers\.[02468]\..*", r".*\.mlp\..*", r"1\d\.self_attn\.\w_proj", r"(?!.*mlp).*", r"[qk]_proj", r"layers.1.*",
        r"^model\.layers\.3\..*", r"\d\.mlp\.(up|gate)_proj", "attn.q_proj", "_proj",
    ]  # fmt: skip
    config = {"r": int(random.integers(1, 9)), "lora_alpha": round(float(random.uniform(0.5, 32)), 2)}
    by_regex = random.random() < 0.25
    config["target_modules"] = str(random.choice(regexes)) if by_regex else some(ends)
    if random.random() < 0.4:
        config["exclude_modules"] = str(random.choice(regexes)) if random.random() < 0.5 else some(ends)
    if random.random() < 0.3:
        config["use_rslora"] = True
    for key in ("rank_pattern", "alpha_pattern"):
        if random.random() < 0.5:
            config[key] = {name: int(random.integers(1, 17)) for name in some(tails)}
    if not by_regex and random.random() < 0.4:
        layers = [int(layer) for layer in random.choice(LAYERS, size=random.integers(1, 5), replace=False)]
        config["layers_to_transform"] = layers[0] if random.random() < 0.3 else layers
        if random.random() < 0.5:
            config["layers_pattern"] = "layers" if random.random() < 0.5 else ["h", "layers"]
    return config


def applied(config):
    """The configuration with what PEFT makes of it."""
    # A copy, since PEFT writes into what it is given.
    try:
        model = get_peft_model(tiny(), LoraConfig(**json.loads(json.dumps(config)), task_type="CAUSAL_LM"))
    except Exception as error:
        return {"config": config, "error": f"{type(error).__name__}: {error}".split("\n")[0][:120]}
    return {"config": config, "modules": plan(model)}


def fits(pattern):
    """What `re` says of the pattern: as a whole path, and as PEFT asks for a path's end; null if it is none."""

    def ask(match, whole):
        try:
            return [match(whole, path) is not None for path in PATHS]
        except re.error:
            return None

    return {
        "pattern": pattern,
        "full": ask(re.fullmatch, pattern),
        "tail": ask(re.match, rf"(.*\.)?({pattern})$"),
    }


def folders(room):
    plans = {}
    for config in sorted(ROOT.glob(f"{room}/*/*/adapter_config.json")):
        folder = config.parent
        with torch.device("meta"):
            base = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(ROOT / "models" / folder.parent.name))
        plans[str(folder.relative_to(ROOT))] = plan(PeftModel.from_pretrained(base, folder, low_cpu_mem_usage=True))
    return plans


def main():
    warnings.simplefilter("ignore")
    random = stream("plans")
    configs = [applied(config) for config in BY_HAND + [draw(random) for _ in range(DRAWN)]]
    whole = {"folders": folders("adapters"), "kinds": folders("kinds"), "layers": LAYERS, "configs": configs, "paths": PATHS}
    write_json(ROOT / "plans.json", whole | {"patterns": [fits(pattern) for pattern in PATTERNS]})
    refused = sum("error" in config for config in configs)
    print(f"{len(whole['folders'])} folders, {len(configs)} configurations ({refused} that PEFT refuses), {len(PATTERNS)} patterns")


if __name__ == "__main__":
    main()
