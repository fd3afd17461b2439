"""llama.cpp's tokenizer, through the library that the PyPI package xllamacpp carries (requirements.txt pins the build)."""

import ctypes as c
import glob
import os

import xllamacpp


class ModelParams(c.Structure):
    """`struct llama_model_params` of this build; only `vocab_only` is set here."""

    _fields_ = [
        ("devices", c.c_void_p),
        ("tensor_buft_overrides", c.c_void_p),
        ("n_gpu_layers", c.c_int32),
        ("split_mode", c.c_int),
        ("load_mode", c.c_int),
        ("lazy_mode", c.c_int),
        ("main_gpu", c.c_int32),
        ("tensor_split", c.c_void_p),
        ("progress_callback", c.c_void_p),
        ("progress_callback_user_data", c.c_void_p),
        ("kv_overrides", c.c_void_p),
        ("vocab_only", c.c_bool),
        ("check_tensors", c.c_bool),
        ("use_extra_bufts", c.c_bool),
        ("no_host", c.c_bool),
        ("no_alloc", c.c_bool),
        ("load_mtp", c.c_bool),
        # A later build may have more fields; it then fills these.
        ("spare", c.c_char * 64),
    ]


_library = c.CDLL(glob.glob(os.path.join(os.path.dirname(xllamacpp.__file__), "xllamacpp*.so"))[0])
_library.llama_model_default_params.restype = ModelParams
_library.llama_model_load_from_file.argtypes = [c.c_char_p, ModelParams]
_library.llama_model_load_from_file.restype = c.c_void_p
_library.llama_model_get_vocab.argtypes = [c.c_void_p]
_library.llama_model_get_vocab.restype = c.c_void_p
_library.llama_tokenize.argtypes = [
    c.c_void_p, c.c_char_p, c.c_int32, c.POINTER(c.c_int32), c.c_int32, c.c_bool, c.c_bool,
]
_silent = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)(lambda *_: None)
_library.llama_log_set(_silent, None)
_library.llama_backend_init()

VERSION = xllamacpp.__version__


class Vocabulary:
    def __init__(self, path):
        params = _library.llama_model_default_params()
        params.vocab_only = True
        model = _library.llama_model_load_from_file(os.fsencode(path), params)
        if not model:
            raise ValueError(f"llama.cpp does not load {path}")
        self.vocab = _library.llama_model_get_vocab(model)

    def ids(self, text, add_special=False, parse_special=False):
        raw = text.encode()
        room = len(raw) + 16
        out = (c.c_int32 * room)()
        count = _library.llama_tokenize(self.vocab, raw, len(raw), out, room, add_special, parse_special)
        assert count >= 0, (text, count)
        return out[:count]
