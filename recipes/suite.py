#!/usr/bin/env python3
"""The reference of SUITES.md: reads a suite and a prompts file, builds what a contender is sent, and scores an answer. Standard library only.

    python3 recipes/suite.py SUITE.jsonl …      checks suites and their prompts files
"""

import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

HEADER_KEYS = {"suite", "about", "sampling", "scorers", "primary", "prompts"}
ITEM_KEYS = {"id", "messages", "expect", "scorers", "tags", "sampling"}
PRESET_KEYS = {"system", "messages", "wrap"}
SCORER_KEYS = {
    "exact": {"at", "ignore_case"},
    "json": {"keys", "allowed"},
    "json_field": {"field", "at", "ignore_case"},
    "regex": {"pattern", "at", "absent"},
    "command": {"run", "timeout_s"},
    "all": {"of"},
}
MISSING = object()


class SuiteError(Exception):
    """A fault in a suite or a prompts file, with its place."""


@dataclass
class Suite:
    folder: Path
    items: list
    header: dict = field(default_factory=dict)

    def scorers(self, item):
        return item.get("scorers", self.header.get("scorers", []))

    def sampling(self, item):
        return {"temperature": 0, **self.header.get("sampling", {}), **item.get("sampling", {})}

    def primary(self):
        return self.header.get("primary") or name_of(self.scorers(self.items[0])[0])


def name_of(scorer):
    return scorer.get("name", scorer["kind"])


def load(path):
    path = Path(path)
    suite = Suite(folder=path.resolve().parent, items=[])
    seen = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict):
                raise SuiteError("not a JSON object")
            if "suite" in entry:
                if suite.header or suite.items:
                    raise SuiteError("a header stands first, once")
                refuse_unknown(entry, HEADER_KEYS)
                suite.header = entry
            else:
                check_item(entry, suite, seen)
                suite.items.append(entry)
        except (SuiteError, json.JSONDecodeError) as error:
            raise SuiteError(f"{path}:{number}: {error}") from None
    if not suite.items:
        raise SuiteError(f"{path}: no items")
    return suite


def refuse_unknown(entry, known):
    if unknown := sorted(set(entry) - known):
        raise SuiteError(f"unknown key {unknown[0]!r}")


def check_messages(messages):
    if not isinstance(messages, list) or not messages:
        raise SuiteError("`messages` is a list with at least one message")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise SuiteError("a message has a `role` and a text as `content`")


def check_item(item, suite, seen):
    refuse_unknown(item, ITEM_KEYS)
    if not isinstance(item.get("id"), str) or not item["id"]:
        raise SuiteError("an item needs an `id`")
    if item["id"] in seen:
        raise SuiteError(f"id {item['id']!r} occurs twice")
    seen.add(item["id"])
    check_messages(item.get("messages"))
    scorers = suite.scorers(item)
    if not scorers:
        raise SuiteError("no scorers, neither here nor in a header")
    names = [name_of(scorer) for scorer in scorers]
    if len(set(names)) < len(names):
        raise SuiteError("two scorers have one name")
    for scorer in scorers:
        check_scorer(scorer, names, item)


def check_scorer(scorer, names, item):
    kind = scorer.get("kind")
    if kind not in SCORER_KEYS:
        raise SuiteError(f"unknown kind of scorer {kind!r}")
    refuse_unknown(scorer, SCORER_KEYS[kind] | {"kind", "name"})
    if kind == "exact":
        strings(expected(scorer, item))
    elif kind == "json_field":
        expected(scorer, item)
    elif kind == "regex":
        re.compile(pattern_of(scorer, item))
    elif kind == "command":
        if not isinstance(scorer.get("run"), list) or not scorer["run"]:
            raise SuiteError("`run` is a program and its arguments")
    elif kind == "all":
        if unknown := set(scorer.get("of", [])) - set(names) | ({name_of(scorer)} & set(scorer.get("of", []))):
            raise SuiteError(f"`of` names {sorted(unknown)[0]!r}")


def pointer(value, at):
    """JSON Pointer, RFC 6901."""
    for part in at.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, ValueError, TypeError):
            raise SuiteError(f"`expect` has nothing at {at!r}") from None
    return value


def expected(scorer, item):
    if "expect" not in item:
        raise SuiteError(f"scorer {name_of(scorer)!r} needs an `expect`")
    at = scorer.get("at")
    if at is None and scorer["kind"] == "json_field":
        at = "/" + scorer["field"].replace("~", "~0").replace("/", "~1")
    return pointer(item["expect"], at or "")


def strings(value):
    listed = value if isinstance(value, list) else [value]
    if not listed or not all(isinstance(one, str) for one in listed):
        raise SuiteError("a string or a list of strings is expected")
    return listed


def pattern_of(scorer, item):
    pattern = scorer.get("pattern", MISSING)
    return expected(scorer, item) if pattern is MISSING else pattern


def folded(value, ignore_case):
    if isinstance(value, str):
        value = " ".join(value.split())
        return value.lower() if ignore_case else value
    return value


def same(left, right):
    """Equality of JSON values; true is not 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return type(left) is type(right) and left == right or isinstance(left, (int, float)) and isinstance(right, (int, float)) and left == right


def only_object(answer):
    try:
        value = json.loads(answer.strip(), parse_constant=lambda _: MISSING)
    except (json.JSONDecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def scores(suite, item, answer):
    """{name: score}, with NAME/PART for the parts of commands."""
    result = {}
    scorers = suite.scorers(item)
    for scorer in scorers:
        if scorer["kind"] == "command":
            result.update(command_scores(suite, item, answer, scorer))
        elif scorer["kind"] != "all":
            result[name_of(scorer)] = float(score(item, answer, scorer))
    for scorer in scorers:
        if scorer["kind"] == "all":
            result[name_of(scorer)] = float(all(result[name] == 1.0 for name in scorer["of"]))
    return result


def score(item, answer, scorer):
    ignore_case = scorer.get("ignore_case", False)
    match scorer["kind"]:
        case "exact":
            given = answer.strip()
            return any((given.lower() == one.strip().lower()) if ignore_case else (given == one.strip()) for one in strings(expected(scorer, item)))
        case "json":
            found = only_object(answer)
            if found is None or ("keys" in scorer and set(found) != set(scorer["keys"])):
                return False
            return all(key in found and any(same(found[key], value) for value in values) for key, values in scorer.get("allowed", {}).items())
        case "json_field":
            found = only_object(answer)
            if found is None or scorer["field"] not in found:
                return False
            wanted = expected(scorer, item)
            given = folded(found[scorer["field"]], ignore_case)
            return any(same(given, folded(one, ignore_case)) for one in (wanted if isinstance(wanted, list) else [wanted]))
        case "regex":
            return (re.search(pattern_of(scorer, item), answer) is not None) != scorer.get("absent", False)


def command_scores(suite, item, answer, scorer):
    run = subprocess.run(scorer["run"], cwd=suite.folder, input=json.dumps({"item": item, "answer": answer}), capture_output=True, text=True, timeout=scorer.get("timeout_s", 10), check=True)
    said = json.loads(run.stdout)
    named = {name_of(scorer): said["score"], **{f"{name_of(scorer)}/{part}": value for part, value in said.get("parts", {}).items()}}
    for name, value in named.items():
        if not 0 <= value <= 1:
            raise SuiteError(f"{name} is {value}, not from 0 to 1")
    return named


def prompts(suite, path=None):
    """The presets of a prompts file: `path`, the header's, or prompts.json beside the suite, or none."""
    if path is None:
        path = suite.folder / suite.header.get("prompts", "prompts.json")
        if "prompts" not in suite.header and not path.exists():
            return {}
    presets = json.loads(Path(path).read_text(encoding="utf-8"))
    for name, preset in presets.items():
        try:
            refuse_unknown(preset, PRESET_KEYS)
            if not preset:
                raise SuiteError("is empty")
            if "messages" in preset:
                check_messages(preset["messages"])
            if preset.get("wrap", "{message}").count("{message}") != 1:
                raise SuiteError("`wrap` holds {message} exactly once")
        except SuiteError as error:
            raise SuiteError(f"{path}: preset {name!r}: {error}") from None
    return presets


def asked(item, preset=None):
    """The messages a contender is sent."""
    preset = preset or {}
    messages = item["messages"]
    if "system" in preset and messages[0]["role"] == "system":
        raise SuiteError(f"item {item['id']!r} has a system message, and so has the preset")
    if "wrap" in preset:
        before, after = preset["wrap"].split("{message}")
        messages = [dict(message, content=before + message["content"] + after) if message["role"] == "user" else message for message in messages]
    system = [{"role": "system", "content": preset["system"]}] if "system" in preset else []
    own = [messages[0]] if messages[0]["role"] == "system" else []
    return system + own + preset.get("messages", []) + messages[len(own) :]


def main():
    for path in sys.argv[1:]:
        suite = load(path)
        presets = prompts(suite)
        print(f"{path}: {len(suite.items)} items, scores {', '.join(name_of(scorer) for scorer in suite.scorers(suite.items[0]))}; presets {', '.join(presets) or 'none'}")


if __name__ == "__main__":
    try:
        main()
    except SuiteError as error:
        sys.exit(str(error))
