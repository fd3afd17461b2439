"""Writes tests/golden/tokenizer: what llama.cpp makes of varied texts, and the small vocabularies that it was asked about.

    pip install -r recipes/tokenizer/requirements.txt
    python recipes/tokenizer/make.py SmolLM2-135M-Instruct.Q4_1.gguf

`smollm2.gguf` is that file's tokenizer and nothing else; `smollm2.json` holds texts and ids, and for some of the texts
the ids that the same vocabulary gives with other names in `tokenizer.ggml.pre`. `spm.gguf` is a small SentencePiece
vocabulary trained here; `spm.json` holds its texts and ids. Where Hugging Face's own tokenizer gives other ids, that is
listed under `hugging_face` by the text's place, since a model was trained with those.
"""

import hashlib
import io
import json
import pathlib
import struct
import sys
import tempfile

import sentencepiece
import tokenizers
from gguf import GGUFReader
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

import llama_cpp
import strings
from gguf_vocabulary import vocabulary_only

GOLDEN = pathlib.Path(__file__).parents[2] / "tests" / "golden" / "tokenizer"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN_UPPER, TEKKEN_LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"


def split(pattern):
    return [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


# How the published tokenizer.json of each family cuts text: normalizer, pre-tokenizers, and whether whole words skip the merges.
FAMILIES = {
    "smollm": (None, [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)], False),
    "gpt-2": (None, [pre_tokenizers.ByteLevel(add_prefix_space=False)], False),
    "llama-bpe": (None, split(CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + REST), True),
    "qwen2": (normalizers.NFC(), split(CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + REST), False),
    "tekken": (
        None,
        split(
            rf"[^\r\n\p{{L}}\p{{N}}]?[{TEKKEN_UPPER}]*[{TEKKEN_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{TEKKEN_UPPER}]+[{TEKKEN_LOWER}]*"
            r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        True,
    ),
    # Names no family; llama.cpp's fallback has no counterpart.
    "default": None,
}


def fields(path):
    return {name: field.contents() for name, field in GGUFReader(path).fields.items() if name.startswith("tokenizer.")}


def with_pre(data, pre):
    """The GGUF bytes with another `tokenizer.ggml.pre`."""
    key = b"tokenizer.ggml.pre" + struct.pack("<I", 8)
    at = data.index(key) + len(key)
    length = struct.unpack_from("<Q", data, at)[0]
    return data[:at] + struct.pack("<Q", len(pre)) + pre.encode() + data[at + 8 + length :]


def llama_cpp_ids(data, texts):
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(data)
        file.flush()
        vocabulary = llama_cpp.Vocabulary(file.name)
    return [vocabulary.ids(text) for text in texts]


def hugging_face_ids(entries, family, texts):
    normalizer, steps, whole_words = FAMILIES[family]
    vocab = {token: at for at, token in enumerate(entries["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in entries["tokenizer.ggml.merges"]]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=whole_words))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


def differing(ids, others):
    return {str(at): other for at, (mine, other) in enumerate(zip(ids, others)) if mine != other}


def write(name, golden):
    text = json.dumps(golden, ensure_ascii=False, separators=(",", ":"))
    (GOLDEN / name).write_text(text)
    print(f"{name}: {len(text.encode())} bytes")


def smollm2(model):
    with open(model, "rb") as file:
        data = vocabulary_only(file.read(64 << 20))
    (GOLDEN / "smollm2.gguf").write_bytes(data)
    entries = fields(GOLDEN / "smollm2.gguf")
    byte_level = decoders.ByteLevel()
    pieces = [piece for piece in (byte_level.decode([token]) for token in entries["tokenizer.ggml.tokens"]) if piece and "\ufffd" not in piece]
    texts = strings.texts(seed=20250101, count=4000, pieces=pieces)
    ids = llama_cpp_ids(data, texts)
    few = texts[: len(strings.PICKED) + 500]
    families = {}
    for family, rules in FAMILIES.items():
        if family == "smollm":
            continue
        theirs = llama_cpp_ids(with_pre(data, family), few)
        families[family] = {
            "differs": differing(ids, theirs),
            "hugging_face": differing(theirs, hugging_face_ids(entries, family, few)) if rules else {},
        }
    write("smollm2.json", {
        "llama_cpp": llama_cpp.VERSION,
        "tokenizers": tokenizers.__version__,
        "texts": texts,
        "ids": ids,
        "hugging_face": differing(ids, hugging_face_ids(entries, "smollm", texts)),
        "few": len(few),
        "families": families,
    })


def spm_gguf(processor):
    """A GGUF file of a SentencePiece vocabulary, as llama.cpp's converter lays it out."""
    size = processor.get_piece_size()
    kinds = []
    for at in range(size):
        kinds.append(2 if processor.is_unknown(at) else 3 if processor.is_control(at) else 6 if processor.is_byte(at) else 1)
    string = lambda text: struct.pack("<Q", len(text.encode())) + text.encode()
    array = lambda kind, items: struct.pack("<IIQ", 9, kind, len(items)) + b"".join(items)
    entries = [
        string("general.architecture") + struct.pack("<I", 8) + string("llama"),
        string("tokenizer.ggml.model") + struct.pack("<I", 8) + string("llama"),
        string("tokenizer.ggml.tokens") + array(8, [string(processor.id_to_piece(at)) for at in range(size)]),
        string("tokenizer.ggml.scores") + array(6, [struct.pack("<f", processor.get_score(at)) for at in range(size)]),
        string("tokenizer.ggml.token_type") + array(5, [struct.pack("<i", kind) for kind in kinds]),
        string("tokenizer.ggml.bos_token_id") + struct.pack("<II", 4, processor.bos_id()),
        string("tokenizer.ggml.eos_token_id") + struct.pack("<II", 4, processor.eos_id()),
        string("tokenizer.ggml.unknown_token_id") + struct.pack("<II", 4, processor.unk_id()),
    ]
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + b"".join(entries)


def spm():
    corpus = strings.common(seed=7, count=6000)
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=trained, model_type="bpe", vocab_size=1500, byte_fallback=True,
        split_digits=True, allow_whitespace_only_pieces=True, normalization_rule_name="identity", add_dummy_prefix=True,
        remove_extra_whitespaces=False, character_coverage=0.995, minloglevel=2, num_threads=1,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    data = spm_gguf(processor)
    (GOLDEN / "spm.gguf").write_bytes(data)
    texts = strings.texts(seed=20250102, count=2000, pieces=[processor.decode([at]) for at in range(259, 1500)])
    ids = llama_cpp_ids(data, texts)
    write("spm.json", {
        "llama_cpp": llama_cpp.VERSION,
        "sentencepiece": sentencepiece.__version__,
        "texts": texts,
        "ids": ids,
        "sentencepiece_differs": differing(ids, [processor.encode(text) for text in texts]),
    })


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    smollm2(sys.argv[1])
    spm()
    for path in sorted(GOLDEN.iterdir()):
        print(hashlib.sha256(path.read_bytes()).hexdigest(), path.name)
