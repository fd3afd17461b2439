"""Checks the golden files against themselves, by a second way of applying an adapter: PEFT's rules in our words, merged into the weights."""

import json
import math
import re

import numpy as np
import torch
from safetensors.torch import load_file

import adapters
import families
import gguf_files
import score
from common import ROOT, SEED

# Between adding s·B(A x) and merging s·BA, and between one batch shape and another.
TOLERANCE = 1e-4
# What every answer that should differ must differ by, somewhere.
VISIBLE = 0.05


def verify_tiny():
    """Reads every score file, answers it again from the files on disk, and checks that what must differ does."""
    for name in families.CONFIGS:
        folder = ROOT / "models" / name
        _verify_scores(name, lambda folder=folder: families.load(folder))
        if any(model == name for model, _ in adapters.KINDS):
            _verify_scores(f"{name}-kinds", lambda folder=folder: families.load(folder))
    for model, kind in gguf_files.FILES:
        _verify_scores(f"{model}-{kind}", lambda model=model, kind=kind: gguf_files.load(model, kind))
    _verify_particulars()
    _verify_later()
    print(f"verified, seed {SEED}")


def _verify_scores(name, load):
    verify_file(ROOT / "scores" / f"{name}.json", load, score.MARGIN)


def verify_file(path, load, least_margin):
    """Answers a score file again from merged weights: equal; each adapter different from the base, from the others and from its own without the scale."""
    scores = json.loads(path.read_text())
    worst, tied = 0.0, 0
    for case in scores["cases"]:
        model = merged(load(), case["adapter"])
        for prompt, answer in zip(scores["prompts"], case["answers"], strict=True):
            worst = max(worst, _difference(model, prompt["tokens"], answer))
            tied += sum(margin < least_margin for margin in answer["greedy"]["margins"])
        if case["adapter"] and scale_matters(case["adapter"]):
            unscaled = merged(load(), case["adapter"], keep_scale=False)
            assert _difference(unscaled, prompt["tokens"], answer) > VISIBLE, f"{case['adapter']}: the scale does not matter"
    assert worst < TOLERANCE, f"{path.name}: off by {worst}"
    for number in range(len(scores["prompts"])):
        greedy = [tuple(case["answers"][number]["greedy"]["tokens"]) for case in scores["cases"]]
        assert len(set(greedy)) == len(greedy), f"{path.name}: two cases answer alike"
    print(f"{path.stem}: {len(scores['cases'])} cases within {worst:.1e}, {tied} near ties", flush=True)


@torch.no_grad()
def _difference(model, tokens, answer):
    """The largest difference in log-probability, over the prompt and the greedy tokens."""
    whole = tokens + answer["greedy"]["tokens"]
    logprobs = model(input_ids=torch.tensor([whole]), use_cache=False).logits[0].log_softmax(-1)
    got = logprobs[:-1].gather(1, torch.tensor(whole[1:])[:, None])[:, 0].numpy()
    want = np.array(answer["logprobs"] + answer["greedy"]["logprobs"])
    return float(np.abs(got - want).max())


def plan(config, paths):
    """Which of the linear layers `paths` the adapter changes, as {path: (rank, scale)}."""
    chosen = {}
    for path in paths:
        if _named(config.get("exclude_modules"), path) or not _targeted(config, path):
            continue
        rank = _pattern(config["rank_pattern"], path, config["r"])
        alpha = _pattern(config["alpha_pattern"], path, config["lora_alpha"])
        chosen[path] = (rank, alpha / (math.sqrt(rank) if config["use_rslora"] else rank))
    return chosen


def _named(names, path):
    if not names:
        return False
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(path == name or path.endswith("." + name) for name in names)


def _targeted(config, path):
    if config["target_modules"] == "all-linear":
        return True
    if not _named(config["target_modules"], path):
        return False
    layers = config["layers_to_transform"]
    if layers is None:
        return True
    layer = int(re.match(r".*?\.[^.]*\.(\d+)\.", path).group(1))
    return layer in ([layers] if isinstance(layers, int) else layers)


def _pattern(patterns, path, default):
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), default)


def _read(adapter):
    folder = ROOT / adapter
    return json.loads((folder / "adapter_config.json").read_text()), load_file(folder / "adapter_model.safetensors")


@torch.no_grad()
def merged(model, adapter, keep_scale=True):
    """The base with the adapter's changes in its weights; every tensor of the file is used, and every planned module has all of its own."""
    if adapter is None:
        return model
    config, tensors = _read(adapter)
    tensors = {key.removeprefix("base_model.model."): tensor.float() for key, tensor in tensors.items()}
    modules = dict(model.named_modules())
    saved = [path for path in EMBEDDINGS if path.split(".")[-1] in (config["modules_to_save"] or [])]
    for path in EMBEDDINGS:
        _replace(model, modules, tensors, path, path in saved)
    linear = {path for path, module in modules.items() if isinstance(module, torch.nn.Linear)}
    linear -= {"lm_head"} if config["target_modules"] == "all-linear" else set()
    for path, (rank, scale) in plan(config, (linear | {EMBEDDINGS[0]}) - set(saved)).items():
        _merge(modules[path], path, rank, scale if keep_scale else 1.0, tensors)
    for path in linear:
        for key in (f"{path}.bias", f"{path}.base_layer.bias"):
            if key in tensors:
                # What a bias on B has added stays beside it.
                modules[path].bias = torch.nn.Parameter(tensors.pop(key) + getattr(modules[path], "added", 0.0))
    assert not tensors, f"{adapter}: {sorted(tensors)} unused"
    return model


EMBEDDINGS = ("model.embed_tokens", "lm_head")


def _replace(model, modules, tensors, path, saved):
    """Puts a whole matrix of the file in the place of the base's: of this module alone if it was trained beside the adapter, else of whatever shares it."""
    if saved:
        modules[path].weight = torch.nn.Parameter(tensors.pop(f"{path}.weight"))
        return
    for key in (f"{path}.weight", f"{path}.base_layer.weight"):
        if key in tensors:
            modules[path].weight.copy_(tensors.pop(key))


def _merge(module, path, rank, scale, tensors):
    """Adds `scale`·BA, scales to DoRA's magnitude, and adds the bias of B. Weights that two modules share are parted first."""
    embedding = isinstance(module, torch.nn.Embedding)
    a, b = (f"{path}.lora_embedding_A", f"{path}.lora_embedding_B") if embedding else (f"{path}.lora_A.weight", f"{path}.lora_B.weight")
    a, b = tensors.pop(a), tensors.pop(b)
    assert a.shape[0] == b.shape[1] == rank, path
    delta = scale * (b @ a)
    weight = module.weight + (delta.T if embedding else delta)
    gain = None
    if f"{path}.lora_magnitude_vector" in tensors:
        dim = 0 if embedding else 1
        gain = tensors.pop(f"{path}.lora_magnitude_vector") / weight.norm(dim=dim)
        weight = weight * (gain if embedding else gain[:, None])
    module.weight = torch.nn.Parameter(weight)
    if f"{path}.lora_B.bias" in tensors:
        module.added = scale * tensors.pop(f"{path}.lora_B.bias")
        module.bias = torch.nn.Parameter(module.added + (0.0 if module.bias is None else module.bias))


def scale_matters(adapter):
    """Whether some module's scale is not 1."""
    config, tensors = _read(adapter)
    paths = {key.removeprefix("base_model.model.").rsplit(".lora_", 1)[0] for key in tensors if ".lora_" in key}
    return any(scale != 1.0 for _, scale in plan(config, paths).values())


def _verify_particulars():
    """What is particular about each model and adapter shows in its scores: without it they differ."""
    for name, without in {
        "llama3": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        "llama-linear": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        "mistral": {"sliding_window": 17},
        "qwen2": {"use_sliding_window": True, "sliding_window": 16, "layer_types": ["sliding_attention"] * 2},
        "smollm3": {"no_rope_layers": [1, 1, 1, 1]},
    }.items():
        _must_differ(name, families.load(ROOT / "models" / name, **without))
    for name, part in {"qwen2": "k_proj.bias", "qwen3": "k_norm.weight"}.items():
        model = families.load(ROOT / "models" / name)
        for key, weight in model.named_parameters():
            if key.endswith(part):
                weight.data.fill_(0.0 if part.endswith("bias") else 1.0)
        _must_differ(name, model)
    config, tensors = _read("adapters/llama/patterns")
    paths = {key.removeprefix("base_model.model.").rsplit(".lora_", 1)[0] for key in tensors}
    for key in ("rank_pattern", "alpha_pattern"):
        by_name = dict(config, **{key: dict(sorted(config[key].items()))})
        assert plan(by_name, paths) != plan(config, paths), f"{key}: its order does not matter"


def _must_differ(name, model):
    scores = json.loads((ROOT / "scores" / f"{name}.json").read_text())
    prompts = {prompt["name"]: number for number, prompt in enumerate(scores["prompts"])}
    number = prompts["long"]
    difference = _difference(model, scores["prompts"][number]["tokens"], scores["cases"][0]["answers"][number])
    assert difference > VISIBLE, f"{name}: what is particular about it does not show"


def _verify_later():
    """Each folder of later/ shows the reason why it is refused, in its config or in the name of a tensor."""
    reasons = json.loads((ROOT / "later" / "expect.json").read_text())
    folders = sorted(str(path.parent.relative_to(ROOT / "later")) for path in ROOT.glob("later/*/*/adapter_config.json"))
    assert folders == sorted(reasons)
    plain = json.loads((ROOT / "adapters/llama/plain-qv/adapter_config.json").read_text())
    for folder, reason in reasons.items():
        config, tensors = _read(f"later/{folder}")
        in_config = config.get(reason) != plain.get(reason)
        assert in_config or any(f".{reason}." in key for key in tensors), f"later/{folder}: no sign of {reason}"
    assert set(adapters.LATER) == {tuple(folder.split("/")) for folder in reasons}
