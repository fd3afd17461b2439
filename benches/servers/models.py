"""The models and adapters that are measured, made where they are not there yet: about three minutes and 6 GB, once.

    target/peers/SmolLM2-135M            the demo model as a Hugging Face folder in float32
    target/peers/SmolLM2-135M.Q8_0.gguf  that folder in one format, for each
    target/peers/wide                    the same function and adapters in sizes that K-quants take, by `scripts/make-formats`
    target/peers/random-1B               a llama of about 1B random parameters
    target/bench-adapters[-…]            adapters as PEFT folders
    target/peers/loras                   the same as llama.cpp's files
"""

import subprocess
import sys
from pathlib import Path

import gguf

import rows

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DEMO = ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf"
PEERS = ROOT / "target/peers"
SMALL, WIDE, BIG = PEERS / "SmolLM2-135M", PEERS / "wide", PEERS / "random-1B"
ADAPTERS = ROOT / "target/bench-adapters"
NO_ADAPTERS = PEERS / "no-adapters"


def _run(script, *arguments):
    subprocess.run([sys.executable, HERE / script, *arguments], check=True)


def folder(path):
    """A Hugging Face folder."""
    if not (path / "model.safetensors").is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"making {path.relative_to(ROOT)} …", file=sys.stderr)
        if path == SMALL:
            _run("folder.py", DEMO, path)
        else:
            _run("random_model.py", folder(SMALL), path)
    return path


def converted(path, format_):
    """A folder's weights in one format."""
    target = path.with_name(f"{path.name}.{format_}.gguf")
    if not target.is_file():
        source = folder(path)
        print(f"making {target.relative_to(ROOT)} …", file=sys.stderr)
        _run("formats.py", source, target, format_)
    return target


def wide(format_, *arguments):
    """What is made wider of the demo model, in one format."""
    subprocess.run([sys.executable, ROOT / "scripts/make-formats", DEMO, WIDE, "--only", format_, *arguments], check=True)


def file(format_):
    """The file that is measured in a format of `rows`."""
    if format_ in rows.WIDE:
        made = WIDE / f"{format_}.gguf"
        if not made.is_file():
            wide(format_)
        return made
    return converted(BIG, "Q4_K_M") if format_ == rows.BIG else converted(SMALL, format_)


def adapters(count, path=ADAPTERS):
    """`count` PEFT folders of random weights for the small model: rank 16 on all seven projections."""
    found = sorted(path.glob("bench-*/adapter_config.json"))
    if len(found) < count:
        subprocess.run([sys.executable, ROOT / "scripts/make-bench-adapters", path, str(count), "16"], check=True)
        found = sorted(path.glob("bench-*/adapter_config.json"))
    return [config.parent for config in found[:count]]


def adapters_for(format_, count):
    """The folder with the adapters of a format's model; an empty one where none are used."""
    if format_ == rows.BIG:
        NO_ADAPTERS.mkdir(parents=True, exist_ok=True)
        return NO_ADAPTERS
    small = adapters(count)
    if format_ not in rows.WIDE:
        return ADAPTERS
    made = WIDE / "adapters"
    if len(list(made.glob("bench-*"))) < count:
        wide(format_, *(word for path in small for word in ("--adapter", path)))
    return made


def loras(count):
    """The small model's adapters as llama.cpp's files."""
    made = PEERS / "loras"
    if len(list(made.glob("*.gguf"))) < count:
        adapters(count)
        _run("loras.py", ADAPTERS, made, folder(SMALL))
    return sorted(made.glob("*.gguf"))[:count]


def _shape(model):
    reader = gguf.GGUFReader(model)
    return reader, lambda name: reader.fields[f"llama.{name}"].contents()


def sizes(model):
    """(bytes that an answer's token reads: every weight once; multiplications that a prompt's token takes: all but the head's)."""
    reader, _ = _shape(model)
    read = sum(int(tensor.n_bytes) for tensor in reader.tensors)
    multiplied = sum(int(tensor.n_elements) for tensor in reader.tensors if len(tensor.shape) == 2 and tensor.name.startswith("blk."))
    return read, multiplied


def key_value_bytes(model):
    """Bytes of keys and values for one position, in 16 bits."""
    _, field = _shape(model)
    head = field("embedding_length") // field("attention.head_count")
    return 2 * 2 * field("block_count") * field("attention.head_count_kv") * head
