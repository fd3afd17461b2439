"""The file of results: what was measured, when, and on which machine. Each run adds to it, so that a measurement can be done in parts."""

import hashlib
import json
import platform
import re
import subprocess
import time
from pathlib import Path

# What decides which kernels run.
TOLD = ("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16")

# What a level of `--cpu-instructions` uses of them.
LEVELS = {"avx2": ("avx2", "fma", "f16c")}


def machine(threads, instructions=None):
    """The processor, its instruction sets (or up to which level they were used), memory, kernel and the threads that were used."""
    cpu = Path("/proc/cpuinfo").read_text()
    flags = re.search(r"^flags\s*:(.*)$", cpu, re.M)[1].split()
    return {
        "processor": re.search(r"^model name\s*:\s*(.*)$", cpu, re.M)[1],
        "family, model, stepping": [int(re.search(rf"^{name}\s*:\s*(\d+)$", cpu, re.M)[1]) for name in ("cpu family", "model", "stepping")],
        "cores": len(re.findall(r"^processor\s*:", cpu, re.M)),
        "instruction sets": [flag for flag in (TOLD if not instructions else LEVELS[instructions]) if flag in flags],
        "memory GiB": round(int(re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) / 2**20),
        "system": platform.release(),
        "threads": threads,
    }


def instructions(arguments):
    """What tunegate is told of them."""
    return ["--cpu-instructions", arguments.instructions] if arguments.instructions else []


def version(command, pattern=r"(\d+(?:\.\d+)+\S*)"):
    """What a program says of its version."""
    run = subprocess.run(command, capture_output=True, text=True)
    found = re.search(pattern, run.stdout + run.stderr)
    return found[1] if found else "unknown"


def digest(program):
    """Which build of a program."""
    with open(program, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def package(python, name):
    return version([python, "-c", f"import importlib.metadata as m; print(m.version('{name}'))"])


class Results:
    """Kept in a file, if there is one; saved after every addition."""

    def __init__(self, path, threads=None, instructions=None):
        """With `threads`, what is added was measured here, now; with `instructions`, with no wider vectors than that level has."""
        self.path = path
        # Entries of one run have it in common.
        self.at = time.strftime("%Y-%m-%d %H:%M:%S")
        self.all = json.loads(path.read_text()) if path and path.is_file() else {}
        if threads:
            self.all["machine"] = machine(threads, instructions)

    def versions(self, found):
        self.all.setdefault("versions", {}).update(found)

    def entry(self, group, **what):
        """A new entry of a group, to be filled round by round."""
        made = {**what, "at": self.at, "rounds": []}
        self.all.setdefault(group, []).append(made)
        return made

    def save(self):
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_suffix(".part")
            part.write_text(json.dumps(self.all, indent=1) + "\n")
            part.rename(self.path)

    def entries(self, group, rounds=1, servers=(), **what):
        """The entries with all of `what`, at least so many rounds, and these servers in every round; newest first."""
        for made in reversed(self.all.get(group, [])):
            fits = all(made.get(name) == value for name, value in what.items())
            if fits and len(made["rounds"]) >= rounds and all(set(servers) <= set(turn) for turn in made["rounds"]):
                yield made

    def newest(self, *which, **what):
        """The first of `entries`, or None."""
        return next(self.entries(*which, **what), None)
