#!/usr/bin/env python3
"""Makes house-style's training rows and its held-out suite. Standard library only; the same seed gives the same bytes.

A draft is a row of sentences in the stiff wording, with an opener, lead-ins and a closer that say nothing; the rewrite is the same sentences in the plain wording,
without those, and with the sign-off. Every rewrite is held against `check.py`, which must give it 1.

    python3 recipes/house-style/make.py            writes build/train.jsonl and heldout.jsonl
    python3 recipes/house-style/make.py --check    fails if heldout.jsonl is not what this would write
"""

import argparse
import hashlib
import json
import random
import re
import sys
from pathlib import Path

import check
import words_heldout
import words_train

HERE = Path(__file__).resolve().parent
FACT_SLOTS = ["person", "city", "machine", "date", "time", "n", "m", "order", "price", "percent", "phone"]
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"]
# A sentence that begins so may follow "please be advised that".
STATEMENTS = {"the", "our", "we", "you", "your", "it", "customers"}
HEADER = {
    "suite": "house-style/heldout",
    "about": "Drafts to rewrite in the house style; sentences, names and machines that no training row has.",
    "sampling": {"temperature": 0, "max_tokens": 160},
    "primary": "style",
    "scorers": [{"name": "style", "kind": "command", "run": ["python3", "check.py"]}],
}


def slot(rng, words, name):
    match name:
        case "person":
            return f"{rng.choice(words.FIRST)} {rng.choice(words.LAST)}"
        case "city":
            return rng.choice(words.CITIES)
        case "machine":
            return rng.choice(words.MACHINES)
        case "part":
            return rng.choice(words.PARTS)
        case "date":
            return f"{rng.randint(1, 28)} {rng.choice(MONTHS)}"
        case "time":
            return f"{rng.randint(6, 19)}:{rng.choice(['00', '15', '30', '45'])}"
        case "n":
            return str(rng.randint(2, 48))
        case "m":
            return str(rng.randint(50, 900))
        case "order":
            return str(rng.randint(10000, 99999))
        case "price":
            return f"{rng.randint(20, 900)} euros"
        case "percent":
            return str(rng.randint(3, 30))
        case "phone":
            return f"555-{rng.randint(1000, 9999)}"
    raise ValueError(f"unknown slot {name}")


def upper_first(text):
    return text[:1].upper() + text[1:]


def unit(rng, words, source):
    """(stiff sentence, plain sentences, facts) of one unit."""
    values = {name: slot(rng, words, name) for name in dict.fromkeys(re.findall(r"\{(\w+)\}", source))}
    facts = [values[name] for name in values if name in FACT_SLOTS]
    stiff = re.sub(r"<([^|>]*)\|[^>]*>", lambda found: rng.choice(found[1].split("/")), source)
    plain = re.sub(r"<[^|>]*\|([^>]*)>", r"\1", source)
    fill = lambda text: " ".join(text.format(**values).split()).replace(" ,", ",").replace(" .", ".")
    return fill(stiff), fill(plain), facts


def draft(rng, words, sources):
    stiff, plain, facts = [], [], []
    opener, closer = rng.choice(words.OPENERS), rng.choice(words.CLOSERS)
    for source in sources:
        said, rewritten, held = unit(rng, words, source)
        if rng.random() < 0.4 and (said.split()[0] in STATEMENTS or source.startswith("{person}")):
            said = rng.choice(words.LEADINS) + said
        stiff.append(upper_first(said))
        plain.append(". ".join(upper_first(part) for part in rewritten.split(". ")))
        facts += held
    text = " ".join(part for part in [opener if rng.random() < 0.8 else "", *stiff, closer] if part)
    return text, " ".join(plain) + "\n" + check.STYLE["sign_off"], list(dict.fromkeys(facts))


def drafts(rng, words, count):
    """`count` drafts of one to three units; the units in turn, so that each is used."""
    deck, seen = [], set()
    while len(seen) < count:
        size = rng.choice([1, 2, 2, 2, 3])
        if len(deck) < size:
            fresh = [source for source in words.UNITS if source not in deck]
            deck += rng.sample(fresh, len(fresh))
        text, rewrite, facts = draft(rng, words, [deck.pop(0) for _ in range(size)])
        if text in seen or any(one != other and check.stands_in(one, other) for one in facts for other in facts):
            continue
        seen.add(text)
        item = {"messages": [{"role": "user", "content": text}], "expect": {"facts": facts}}
        verdict = check.check(item, rewrite)
        if verdict["score"] != 1.0:
            raise SystemExit(f"the rewrite breaks the rules ({verdict['why']}):\n{text}\n{rewrite}")
        yield item, rewrite


def lines(objects):
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects)


def heldout_suite(seed):
    items = [HEADER]
    for number, (item, _) in enumerate(drafts(random.Random(seed), words_heldout, 80), 1):
        length = "one-unit" if len(item["expect"]["facts"]) <= 3 else "longer"
        items.append({"id": f"s-{number:02}", **item, "tags": [length]})
    return lines(items)


def refuse_shared_words():
    for part in ["OPENERS", "CLOSERS", "LEADINS", "UNITS", "FIRST", "LAST", "CITIES", "MACHINES", "PARTS"]:
        if shared := (set(getattr(words_train, part)) & set(getattr(words_heldout, part))) - {""}:
            raise SystemExit(f"both in training and held out: {sorted(shared)}")


def main():
    parser = argparse.ArgumentParser(description="Make house-style's training rows and held-out suite.")
    parser.add_argument("--check", action="store_true", help="only compare the committed heldout.jsonl with what the seed gives")
    parser.add_argument("--seed", type=int, default=7, help="the committed suite and the card use the default")
    arguments = parser.parse_args()

    refuse_shared_words()
    suite = heldout_suite(arguments.seed)
    if arguments.check:
        sys.exit(0 if (HERE / "heldout.jsonl").read_text(encoding="utf-8") == suite else "heldout.jsonl differs from what the seed gives")
    (HERE / "heldout.jsonl").write_text(suite, encoding="utf-8")
    rows = [{"messages": [*item["messages"], {"role": "assistant", "content": rewrite}]} for item, rewrite in drafts(random.Random(arguments.seed + 1), words_train, 400)]
    build = HERE / "build"
    build.mkdir(exist_ok=True)
    text = lines(rows)
    (build / "train.jsonl").write_text(text, encoding="utf-8")
    print(f"train.jsonl: {len(rows)} rows, sha256 {hashlib.sha256(text.encode()).hexdigest()}")


if __name__ == "__main__":
    main()
