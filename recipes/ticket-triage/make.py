#!/usr/bin/env python3
"""Makes ticket-triage's training rows and its generated held-out suite. Standard library only; the same seed gives the same bytes.

The labels, by rule:

* `category`: what is broken or wanted. A safety device that does not protect is `safety`, whatever broke in it. Two faults in one ticket: the one that the writer calls
  the main one, otherwise the one told first. `parts` wants to buy, get or return a part; `service` wants a visit, a training or a document; what is none of these is `other`.
* `urgency`: `critical` if people are in danger, something burns, or the whole plant stands; `high` if a machine or line stands or help is asked for today;
  `normal` if work goes on; `low` if the writer says that it can wait. A ticket that does not say: `high` for safety, `low` for parts, service and other, `normal` for the rest.
* `machine`: its name as the ticket writes it, without article and noun; `null` if no machine is named.

    python3 recipes/ticket-triage/make.py            writes build/train-v{1,2,3}.jsonl and heldout.jsonl
    python3 recipes/ticket-triage/make.py --check    fails if heldout.jsonl is not what this would write
"""

import argparse
import hashlib
import json
import random
import sys
from pathlib import Path

import words_heldout
import words_train

HERE = Path(__file__).resolve().parent
CATEGORIES = ["hydraulics", "pneumatics", "electrical", "sensor", "software", "network", "mechanical", "cooling", "safety", "parts", "service", "other"]
URGENCIES = ["low", "normal", "high", "critical"]
WISHES = {"parts", "service", "other"}
# How often a ticket of a kind carries a cue of each urgency; None is a ticket that does not say.
CUE_WEIGHTS = {
    "fault": [("low", 18), ("normal", 27), ("high", 28), ("critical", 17), (None, 10)],
    "safety": [("high", 35), ("critical", 35), (None, 30)],
    "wish": [("low", 45), ("high", 20), (None, 35)],
    "other": [(None, 100)],
}
# The second labeller of version 2 files these under the wrong category, always the same way.
MIX_UPS = {"cooling": "hydraulics", "pneumatics": "hydraulics", "network": "software", "sensor": "electrical"}
HEADER = {
    "suite": "ticket-triage/heldout",
    "about": "Generated support tickets; sentences, machines and layouts that no training row has.",
    "sampling": {"temperature": 0, "max_tokens": 64},
    "primary": "all",
    "scorers": [
        {"name": "json", "kind": "json", "keys": ["category", "urgency", "machine"], "allowed": {"category": CATEGORIES, "urgency": URGENCIES}},
        {"name": "category", "kind": "json_field", "field": "category"},
        {"name": "urgency", "kind": "json_field", "field": "urgency"},
        {"name": "machine", "kind": "json_field", "field": "machine", "ignore_case": True},
        {"name": "all", "kind": "all", "of": ["json", "category", "urgency", "machine"]},
    ],
}


def weighted(rng, choices):
    point = rng.random() * sum(weight for _, weight in choices)
    for value, weight in choices:
        point -= weight
        if point < 0:
            return value
    return choices[-1][0]


def upper_first(text):
    return text[:1].upper() + text[1:]


def machine_name(rng, words):
    """A name in one of the words' forms: L is a letter, d a digit that is not 0 at the front."""
    form = rng.choice(words.NAME_FORMS)
    form = form.replace("{maker}", rng.choice(words.MAKERS)).replace("{product}", rng.choice(words.PRODUCTS))
    while "{L}" in form:
        form = form.replace("{L}", rng.choice("ABCDEFGHKLMNPQRSTUVWX"), 1)
    while "{d}" in form:
        form = form.replace("{d}", rng.choice("123456789"), 1)
    return form


def typos(rng, text, keep):
    """Two or three slips of the keyboard, never inside the machine's name."""
    letters = [i for i in range(1, len(text) - 1) if text[i - 1 : i + 2].isalpha()]
    if keep and keep in text:
        start = text.index(keep)
        letters = [i for i in letters if i < start - 2 or i > start + len(keep) + 1]
    for i in sorted(rng.sample(letters, min(len(letters), rng.choice([2, 3]))), reverse=True):
        kind = rng.random()
        if kind < 0.4:
            text = text[:i] + text[i + 1] + text[i] + text[i + 2 :]
        elif kind < 0.8:
            text = text[:i] + text[i + 1 :]
        else:
            text = text[:i] + text[i] + text[i:]
    return text


def ticket(rng, words, category, sentence, other_sentences):
    """One ticket and its label. `other_sentences(rng, category)` gives a fault of another category, for tickets with two."""
    kind = category if category in ("safety", "other") else "wish" if category in WISHES else "fault"
    urgency = weighted(rng, CUE_WEIGHTS[kind])
    cues = words.WISH_CUES if kind == "wish" else words.CUES
    cue = rng.choice(cues[urgency]) if urgency else None
    name = machine_name(rng, words) if category != "other" and rng.random() < 0.8 else None
    noun = rng.choice(words.NOUNS)
    if name:
        shown = rng.choice([f"the {name}", f"our {name}", f"the {name} {noun}", name])
    else:
        shown = rng.choice([f"the {noun}", f"our {noun}", f"the {noun} in hall {rng.randint(1, 9)}"])

    slots = {
        "lead": rng.choice(words.LEADS),
        "cue": cue,
        "remark": rng.choice(words.REMARKS if kind in ("fault", "safety") else words.WISH_REMARKS),
        "closing": rng.choice(words.CLOSINGS),
        "name": name,
    }
    shape = rng.random()
    if name and cue and shape < 0.22:
        template = rng.choice(words.FORMS)
        slots["fault"] = sentence.replace("{m}", f"the {noun}")
    else:
        template = rng.choice(words.PROSE if cue else words.PROSE_WITHOUT_CUE if kind != "other" else words.LETTERS)
        slots["fault"] = sentence.replace("{m}", shown)
        if kind == "fault" and shape > 0.88:
            joined = rng.choice(words.SECOND_FAULT).format(first=slots["fault"], second=other_sentences(rng, category).replace("{m}", f"the {noun}"))
            slots["fault"] = joined.rstrip(".")
    text = " ".join(part for part in template.format(**slots).split(" ") if part)
    text = sentences_cased(text)
    if rng.random() < 0.12:
        text = typos(rng, text, name)
    if rng.random() < 0.12:
        text = text.lower()
        name = name.lower() if name else None
    label = {"category": category, "urgency": urgency or {"safety": "high", "fault": "normal"}.get(kind, "low"), "machine": name}
    return text, label


def sentences_cased(text):
    """Capital letters where a sentence begins."""
    for mark in [". ", "\n"]:
        text = mark.join(upper_first(part) for part in text.split(mark))
    return upper_first(text)


def tickets(rng, words, count):
    """`count` tickets, the categories in turn, and within a category its sentences in turn, so that each is used."""
    sentences = dict(words.FAULTS, other=words.OTHER)
    decks = {category: [] for category in sentences}
    faults = [category for category in words.FAULTS if category not in WISHES | {"safety"}]

    def another(rng, category):
        return rng.choice(words.FAULTS[rng.choice([other for other in faults if other != category])])

    seen = set()
    while len(seen) < count:
        category = CATEGORIES[len(seen) % len(CATEGORIES)]
        if not decks[category]:
            decks[category] = rng.sample(sentences[category], len(sentences[category]))
        text, label = ticket(rng, words, category, decks[category].pop(), another)
        if text not in seen:
            seen.add(text)
            yield text, label


def answer(label):
    return json.dumps(label, ensure_ascii=False)


def row(text, label):
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer(label)}]}


def mislabelled(rows, share):
    """The same tickets, `share` of them filed by the second labeller; his mix-ups first fall on the earliest rows they can."""
    wanted = round(share * len(rows))
    result = []
    for text, label in rows:
        if wanted and label["category"] in MIX_UPS:
            label = dict(label, category=MIX_UPS[label["category"]])
            wanted -= 1
        result.append((text, label))
    if wanted:
        raise SystemExit(f"{wanted} wrong labels too few: the mix-ups do not cover enough rows")
    return result


def lines(objects):
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in objects)


def heldout_suite(seed):
    items = [HEADER]
    for number, (text, label) in enumerate(tickets(random.Random(seed), words_heldout, 120), 1):
        tags = [label["category"], "named" if label["machine"] else "unnamed"]
        items.append({"id": f"h-{number:03}", "messages": [{"role": "user", "content": text}], "expect": label, "tags": tags})
    return lines(items)


def refuse_shared_words():
    """Held-out means held-out: no sentence, cue, machine maker or layout in both lists."""
    for part in ["CUES", "WISH_CUES", "FAULTS"]:
        for key, sentences in getattr(words_train, part).items():
            shared = set(sentences) & set(getattr(words_heldout, part)[key])
            if shared:
                raise SystemExit(f"both in training and held out: {sorted(shared)}")
    for part in ["OTHER", "MAKERS", "PRODUCTS", "NOUNS", "LEADS", "CLOSINGS", "REMARKS", "WISH_REMARKS", "PROSE", "PROSE_WITHOUT_CUE", "LETTERS", "FORMS", "SECOND_FAULT"]:
        shared = set(getattr(words_train, part)) & set(getattr(words_heldout, part))
        if shared:
            raise SystemExit(f"both in training and held out: {sorted(shared)}")


def main():
    parser = argparse.ArgumentParser(description="Make ticket-triage's training rows and held-out suite.")
    parser.add_argument("--check", action="store_true", help="only compare the committed heldout.jsonl with what the seed gives")
    parser.add_argument("--seed", type=int, default=20, help="the committed suite and the cards use the default")
    arguments = parser.parse_args()

    refuse_shared_words()
    suite = heldout_suite(arguments.seed)
    if arguments.check:
        sys.exit(0 if (HERE / "heldout.jsonl").read_text(encoding="utf-8") == suite else "heldout.jsonl differs from what the seed gives")

    (HERE / "heldout.jsonl").write_text(suite, encoding="utf-8")
    build = HERE / "build"
    build.mkdir(exist_ok=True)
    everything = list(tickets(random.Random(arguments.seed + 1), words_train, 720))
    versions = {"v1": everything[:150], "v2": mislabelled(everything[:360], 0.30), "v3": everything}
    for version, rows in versions.items():
        text = lines(row(*pair) for pair in rows)
        path = build / f"train-{version}.jsonl"
        path.write_text(text, encoding="utf-8")
        print(f"{path.name}: {len(rows)} rows, sha256 {hashlib.sha256(text.encode()).hexdigest()}")


if __name__ == "__main__":
    main()
