"""Where the golden files are, and the two sources of everything in them: named random streams and exact float printing."""

import json
import pathlib
import zlib

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden"
SEED = 3
VOCAB = 512
GREEDY = 64


def stream(*name):
    """A random stream that depends on its name alone, so that adding one file changes no other."""
    return np.random.default_rng([SEED, *(zlib.crc32(str(part).encode()) for part in name)])


def exact(value):
    """The shortest decimal that reads back as the same float32."""
    return float(np.format_float_positional(np.float32(value), unique=True, trim="-"))


def write_json(path, value):
    """Pretty enough to diff: a new line for each entry of the outer two levels, compact below."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_layout(value, 2) + "\n", encoding="utf-8")


def _layout(value, levels, indent=""):
    if levels and isinstance(value, dict) and value:
        inner = indent + " "
        rows = [f"{inner}{json.dumps(key)}: {_layout(item, levels - 1, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(rows) + "\n" + indent + "}"
    if levels and isinstance(value, list) and value and isinstance(value[0], (dict, list)):
        inner = indent + " "
        rows = [inner + json.dumps(item, ensure_ascii=False, separators=(",", ":")) for item in value]
        return "[\n" + ",\n".join(rows) + "\n" + indent + "]"
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
