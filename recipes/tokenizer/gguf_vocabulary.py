"""Copies a GGUF file's tokenizer, and nothing else, into a small GGUF file without tensors.

    python recipes/tokenizer/gguf_vocabulary.py MODEL.gguf VOCABULARY.gguf
"""

import struct
import sys

# Sizes of the value types, by number; texts (8) and arrays (9) carry their lengths.
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
KEPT = ("general.architecture", "general.name", "general.license", "tokenizer.")


def value_end(data, at, kind):
    """Where the value of this type that begins at `at` ends."""
    if kind in SIZES:
        return at + SIZES[kind]
    if kind == 8:
        return at + 8 + struct.unpack_from("<Q", data, at)[0]
    element, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if element in SIZES:
        return at + SIZES[element] * count
    for _ in range(count):
        at = value_end(data, at, element)
    return at


def entries(data):
    """Key, and the whole entry's bytes, of every metadata entry."""
    magic, version, _tensors, count = struct.unpack_from("<4sIQQ", data, 0)
    assert magic == b"GGUF" and version == 3, (magic, version)
    at = 24
    for _ in range(count):
        start = at
        length = struct.unpack_from("<Q", data, at)[0]
        key = data[at + 8 : at + 8 + length].decode()
        at += 8 + length
        kind = struct.unpack_from("<I", data, at)[0]
        at = value_end(data, at + 4, kind)
        yield key, data[start:at]


def vocabulary_only(data):
    kept = [entry for key, entry in entries(data) if key.startswith(KEPT)]
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(kept)) + b"".join(kept)


if __name__ == "__main__":
    source, target = sys.argv[1:]
    with open(source, "rb") as file:
        small = vocabulary_only(file.read(64 << 20))
    with open(target, "wb") as file:
        file.write(small)
    print(f"{target}: {len(small)} bytes")
