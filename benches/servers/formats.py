#!/usr/bin/env python3
"""Writes a GGUF file's weights in another format: the same model for every server and every format.

    python3 benches/servers/formats.py IN.gguf OUT.gguf F16|Q8_0|Q4_0|Q4_1

Matrices are decoded to float32 and encoded anew, one-dimensional tensors stay in float32, everything else of the file is
copied. Needs the packages `gguf` and `numpy`.
"""

import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType as FileType

FILE_TYPES = {
    "F16": FileType.MOSTLY_F16,
    "Q8_0": FileType.MOSTLY_Q8_0,
    "Q4_0": FileType.MOSTLY_Q4_0,
    "Q4_1": FileType.MOSTLY_Q4_1,
}
# What the writer itself puts into the header.
WRITTEN = {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.architecture", "general.file_type"}


def copy_settings(reader, writer):
    for name, field in reader.fields.items():
        if name in WRITTEN:
            continue
        kind, items = field.types[0], None
        if kind == gguf.GGUFValueType.ARRAY:
            items = field.types[-1]
        writer.add_key_value(name, field.contents(), kind, sub_type=items)


def convert(source, target, name):
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    writer.add_file_type(FILE_TYPES[name])
    copy_settings(reader, writer)
    for tensor in reader.tensors:
        values = np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        values = values.reshape(tuple(reversed(tensor.shape.tolist())))
        dtype = Type.F32 if values.ndim == 1 else Type[name]
        writer.add_tensor(tensor.name, np.ascontiguousarray(gguf.quantize(values, dtype)), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[3] not in FILE_TYPES:
        sys.exit(__doc__)
    convert(*sys.argv[1:])
