"""The oracle's answers: teacher-forced log-probabilities, entropies, the five best, and greedy tokens with their margins."""

import platform

import numpy as np
import peft
import torch
import transformers

from common import GREEDY, VOCAB, exact, stream

# The longest passes the original rope length of `llama3` (64); all but the two shortest pass the sliding window of `mistral` (16).
SLOTS = {"short": 7, "window": 40, "long": 100, "one": 1, "ragged-5": 5, "ragged-23": 23, "ragged-58": 58}
CANDIDATES = 32
# Greedy tokens may part where the two best are within 1e-3; prompts are chosen so that this hardly occurs.
MARGIN = 1.2e-3


def versions():
    """What made the answers."""
    return {
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "python": platform.python_version(),
        "dtype": "float32",
        "attention": "eager",
    }


def choose_prompts(name, models, slots=SLOTS):
    """Seeded prompts, one for each slot: of 32 candidates the one whose greedy tokens come near a tie under the fewest of `models`; of those, the one with the most varied continuations."""
    prompts = []
    for slot, length in slots.items():
        tokens = torch.from_numpy(stream("prompt", name, slot).integers(3, VOCAB, (CANDIDATES, length)))
        ties, variety = torch.zeros(CANDIDATES), torch.full((CANDIDATES,), float(GREEDY))
        for model in models:
            made, margins = _greedy_with_cache(model, tokens)
            ties += margins.min(dim=1).values < MARGIN
            variety = torch.minimum(variety, torch.tensor([float(len(set(row))) for row in made.tolist()]))
        best = (ties * GREEDY - variety).argmin()
        prompts.append({"name": slot, "tokens": tokens[best].tolist()})
    return prompts


@torch.no_grad()
def _greedy_with_cache(model, tokens):
    """Greedy continuations of a batch of equal lengths, [batch, GREEDY], and the margins of each step."""
    made, margins = [], []
    cache, step = None, tokens
    for _ in range(GREEDY):
        out = model(input_ids=step, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        best, ids = out.logits[:, -1].float().topk(2)
        made.append(ids[:, 0])
        margins.append(best[:, 0] - best[:, 1])
        step = ids[:, :1]
    return torch.stack(made, 1), torch.stack(margins, 1)


@torch.no_grad()
def answer(model, tokens):
    """The oracle's answer to one prompt. The greedy tokens come from cached steps, every number from one full pass without cache."""
    greedy = _greedy_with_cache(model, torch.tensor([tokens]))[0][0].tolist()
    whole = tokens + greedy
    logprobs = model(input_ids=torch.tensor([whole]), use_cache=False).logits[0].float().log_softmax(-1).numpy()
    assert np.isfinite(logprobs).all()
    last = len(tokens) - 1
    two = np.sort(logprobs[last : last + GREEDY], axis=-1)[:, -2:]
    margins = two[:, 1] - two[:, 0]
    parted = logprobs[last : last + GREEDY].argmax(-1) != np.array(greedy)
    assert not (parted & (margins > 1e-4)).any(), "cached and full passes disagree"
    best = np.argsort(-logprobs[last], kind="stable")[:5]
    return {
        "logprobs": [exact(logprobs[i, whole[i + 1]]) for i in range(last)],
        "entropies": [[i, exact(_entropy(logprobs[i]))] for i in sorted({0, last // 2, last})],
        "top": [[int(token), exact(logprobs[last, token])] for token in best],
        "greedy": {
            "tokens": greedy,
            "logprobs": [exact(logprobs[last + j, token]) for j, token in enumerate(greedy)],
            "margins": [exact(margin) for margin in margins],
        },
    }


def _entropy(logprobs):
    wide = logprobs.astype(np.float64)
    return -(np.exp(wide) * wide).sum()


def case(adapter, model, prompts):
    """One case of a score file: the base (`adapter` None) or an adapter, on every prompt."""
    return {"adapter": adapter, "answers": [answer(model, prompt["tokens"]) for prompt in prompts]}
