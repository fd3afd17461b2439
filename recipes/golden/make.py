"""Makes the golden files below tests/golden, or with --verify loads every one again and checks it against itself.

    python recipes/golden/make.py                          everything but the real model
    python recipes/golden/make.py --smollm2 FILE.gguf      the real model's part alone
    python recipes/golden/make.py --verify [--smollm2 FILE.gguf]
"""

import argparse
import warnings

import torch
from transformers.utils import logging

import adapters
import chat
import families
import score
import tokenizer
from common import ROOT, write_json


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--verify", action="store_true", help="check the files instead of writing them")
    arguments.add_argument("--smollm2", metavar="GGUF", help="the demo model's file")
    chosen = arguments.parse_args()
    # More threads wait for each other longer than such small models compute.
    torch.set_num_threads(2 if chosen.smollm2 else 1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.disable_progress_bar()
    make_tiny()


def make_tiny():
    """The tiny models, their adapters, and every answer."""
    bpe = tokenizer.train()
    for name in families.CONFIGS:
        families.write_model(name, bpe)
    adapters.write_adapters()
    chat.write_chat()
    for name in families.CONFIGS:
        score_model(name)


def score_model(name):
    """Writes scores/<name>.json: the base and each of its adapters, all on the same prompts."""
    folder = ROOT / "models" / name
    models = {None: families.load(folder)}
    for model, adapter in adapters.SUPPORTED:
        if model == name:
            path = f"adapters/{model}/{adapter}"
            models[path] = adapters.attach(families.load(folder), ROOT / path)
    prompts = score.choose_prompts(name, models.values())
    cases = [score.case(adapter, model, prompts) for adapter, model in models.items()]
    whole = {"model": f"models/{name}", "oracle": score.versions(), "prompts": prompts, "cases": cases}
    write_json(ROOT / "scores" / f"{name}.json", whole)
    least = min(min(answer["greedy"]["margins"]) for case in cases for answer in case["answers"])
    print(f"{name}: {len(cases)} cases, least margin {least:.2g}", flush=True)


if __name__ == "__main__":
    main()
