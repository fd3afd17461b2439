"""Prompts of a given number of tokens, the same for a server that takes token ids and for one that takes text."""

import functools
import json
import re


@functools.cache
def _words(folder):
    """Token id → text, for tokens that are a space and a word of three letters or more. Any row of them is encoded as itself."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    return {number: " " + token[1:] for token, number in vocabulary.items() if re.fullmatch("Ġ[a-z]{3,}", token)}


@functools.cache
def _ids(folder):
    return sorted(_words(folder))


def prompt(rng, length, folder):
    """Token ids; no two prompts begin alike, so that no server finds one in a cache."""
    return rng.choices(_ids(folder), k=length)


def text_of(tokens, folder):
    """The text of a prompt."""
    words = _words(folder)
    return "".join(words[token] for token in tokens)
