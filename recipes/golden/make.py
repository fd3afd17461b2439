"""Makes the golden files below tests/golden, or with --verify loads every one again and checks it against itself.

    python recipes/golden/make.py                          everything but the real model
    python recipes/golden/make.py --kinds                  the adapters beyond plain low rank, and those that are refused
    python recipes/golden/make.py --smollm2 FILE.gguf      the real model's part alone
    python recipes/golden/make.py --verify                 checks everything but the real model
    python recipes/golden/make.py --verify --smollm2 FILE.gguf
"""

import argparse
import functools
import warnings

import torch
from transformers.utils import logging

import adapters
import chat
import families
import gguf_files
import score
import smollm2
import tokenizer
import verify
from common import ROOT, write_json

# The formats differ in their weights alone, so fewer prompts and adapters show what there is to show.
GGUF_SLOTS = {slot: score.SLOTS[slot] for slot in ("short", "window", "long")}
KIND_SLOTS = {slot: score.SLOTS[slot] for slot in ("short", "window", "long", "one")}
GGUF_ADAPTERS = ("plain-qv", "all7")


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--verify", action="store_true", help="check the files instead of writing them")
    arguments.add_argument("--kinds", action="store_true", help="write kinds/ and later/ and their scores alone")
    arguments.add_argument("--smollm2", metavar="GGUF", help="the demo model's file")
    chosen = arguments.parse_args()
    # More threads wait for each other longer than such small models compute.
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.disable_progress_bar()
    if chosen.smollm2 and chosen.verify:
        smollm2.verify_smollm2(chosen.smollm2)
    elif chosen.smollm2:
        smollm2.write_smollm2(chosen.smollm2)
    elif chosen.verify:
        verify.verify_tiny()
    elif chosen.kinds:
        adapters.write_kinds()
        write_kind_scores()
    else:
        make_tiny()


def make_tiny():
    """The tiny models, their adapters, and every answer."""
    bpe = tokenizer.train()
    for name in families.CONFIGS:
        families.write_model(name, bpe)
    adapters.write_adapters()
    chat.write_chat()
    for name in families.CONFIGS:
        paths = [f"adapters/{model}/{adapter}" for model, adapter in adapters.SUPPORTED if model == name]
        load = functools.partial(families.load, ROOT / "models" / name)
        write_scores(name, f"models/{name}", load, paths, score.SLOTS)
    write_kind_scores()
    for model, kind in gguf_files.FILES:
        gguf_files.write_gguf(model, kind, bpe)
        paths = [f"adapters/{model}/{adapter}" for adapter in GGUF_ADAPTERS if (model, adapter) in adapters.SUPPORTED]
        load = functools.partial(gguf_files.load, model, kind)
        write_scores(f"{model}-{kind}", f"gguf/{model}-{kind}.gguf", load, paths, GGUF_SLOTS)


def write_kind_scores():
    """Writes scores/<model>-kinds.json."""
    for name in dict.fromkeys(model for model, _ in adapters.KINDS):
        paths = [f"kinds/{model}/{adapter}" for model, adapter in adapters.KINDS if model == name]
        load = functools.partial(families.load, ROOT / "models" / name)
        write_scores(f"{name}-kinds", f"models/{name}", load, paths, KIND_SLOTS)


def write_scores(name, model, load, paths, slots):
    """Writes scores/<name>.json: the base and the adapters of these paths, all on the same prompts."""
    models = {None: load()}
    for path in paths:
        models[path] = adapters.attach(load(), ROOT / path)
    prompts = score.choose_prompts(name, models.values(), slots)
    cases = [score.case(adapter, oracle, prompts) for adapter, oracle in models.items()]
    whole = {"model": model, "oracle": score.versions(), "prompts": prompts, "cases": cases}
    write_json(ROOT / "scores" / f"{name}.json", whole)
    least = min(min(answer["greedy"]["margins"]) for case in cases for answer in case["answers"])
    print(f"{name}: {len(cases)} cases, least margin {least:.2g}", flush=True)


if __name__ == "__main__":
    main()
