#!/usr/bin/env python3
"""Scores one rewrite against the house style and against the facts of the draft: the `command` scorer of house-style's suite. Standard library only.

Reads {"item", "answer"} on standard input and prints {"score", "parts", "why"}; `score` is the mean of the four parts:

* `short`: the share of sentences with at most `max_words` words;
* `sign_off`: 1 if the last line is the sign-off, alone, and stands there once;
* `words`: 1 if no banned word, exclamation mark, semicolon or bracket occurs;
* `facts`: the share of `expect.facts` (names and numbers of the draft) that the answer keeps, less one share for every number that the draft does not have.

The parts are blind to what a sentence says about a fact: a rewrite that turns "before 14 May" into "after 14 May" loses nothing here.
"""

import json
import re
import sys
from pathlib import Path

STYLE = json.loads((Path(__file__).resolve().parent / "style.json").read_text(encoding="utf-8"))
NUMBER = re.compile(r"\w*\d\w*(?:[-.:,]\w*\d\w*)*")


def sentences(text):
    """Cut after a full stop, question mark or exclamation mark that a space or the end follows, and at line ends; "9:30" and "3.5" hold together."""
    return [part.strip() for part in re.split(r"(?<=[.?!])\s+|\n", text) if re.search(r"\w", part)]


def words(text):
    return re.findall(r"[^\W_]+(?:[-:.,'’][^\W_]+)*", text)


def stands_in(fact, text):
    return re.search(rf"(?<!\w){re.escape(fact)}(?!\w)", text) is not None


def check(item, answer):
    why = []
    sign_off = STYLE["sign_off"]
    lines = [line.strip() for line in answer.strip().splitlines()]
    signed = bool(lines) and lines[-1] == sign_off and answer.count(sign_off) == 1
    if not signed:
        why.append("no sign-off")
    body = "\n".join(line for line in lines if line != sign_off)

    said = sentences(body)
    long = [sentence for sentence in said if len(words(sentence)) > STYLE["max_words"]]
    short = 1 - len(long) / len(said) if said else 0.0
    if long:
        why.append(f"a sentence of {len(words(long[0]))} words")

    used = sorted({word.lower() for word in words(body)} & set(STYLE["banned"]))
    marks = sorted(set(re.findall(r"[!;()\[\]]", body)))
    clean = bool(said) and not used and not marks
    if used or marks:
        why.append("not in the style: " + " ".join(used + marks))

    facts = item["expect"]["facts"]
    lost = [fact for fact in facts if not stands_in(fact, body)]
    draft = item["messages"][-1]["content"]
    invented = sorted({number for number in NUMBER.findall(body) if not stands_in(number, draft)})
    kept = max(0.0, (len(facts) - len(lost) - len(invented)) / len(facts)) if facts else float(not invented)
    if lost:
        why.append("lost: " + ", ".join(lost))
    if invented:
        why.append("not in the draft: " + ", ".join(invented))

    parts = {"short": short, "sign_off": float(signed), "words": float(clean), "facts": kept}
    return {"score": sum(parts.values()) / len(parts), "parts": parts, "why": "; ".join(why)}


if __name__ == "__main__":
    given = json.load(sys.stdin)
    print(json.dumps(check(given["item"], given["answer"]), ensure_ascii=False))
