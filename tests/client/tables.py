"""Reads an exported table with pyarrow, a reader of its own, and prints what it found as JSON."""

import json
import sys

import pyarrow.csv
import pyarrow.parquet


def main(path: str) -> None:
    table = pyarrow.csv.read_csv(path) if path.endswith(".csv") else pyarrow.parquet.read_table(path)
    types = {name: str(kind) for name, kind in zip(table.schema.names, table.schema.types)}
    print(json.dumps({"types": types, "rows": table.to_pylist()}, default=str))


main(sys.argv[1])
