"""Tables of encoded images, as the Hugging Face hub stores them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from hydraprune.core.errors import DataError
from hydraprune.data.decode import decoded


def parquet_files(folder: str, split: str) -> list[Path]:
    """Every `split*.parquet` in `folder` and below, sorted.

    Raises:
        DataError: if there is none, or no such folder.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"data.path {folder!r} is not a folder; give one with train*.parquet and test*.parquet in it")
    found = sorted(root.rglob("*.parquet"))
    files = [file for file in found if file.name.startswith(split)]
    if not files:
        names = ", ".join(file.name for file in found[:5]) or "no parquet file"
        raise DataError(f"data.path {folder!r} has no {split}*.parquet but {names}; name the files by their split")
    return files


def read_table(file: Path) -> pa.Table:
    """All rows of `file`.

    Raises:
        DataError: if it is damaged.
    """
    try:
        with pq.ParquetFile(file) as parquet:
            return parquet.read()
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{file} is damaged or no parquet file ({reason}); fetch it again") from None


def columns(name: str, table: pa.Table, image: str) -> tuple[list[bytes], Tensor]:
    """The encoded images in `table`, a column of structs with `bytes` called `image`, and their class ids.

    Raises:
        DataError: naming the table `name`, if a column is missing, of another type, or has gaps.
    """
    if missing := {image, "label"} - set(table.column_names):
        raise DataError(
            f"{name} has no column {sorted(missing)[0]!r} but {', '.join(table.column_names)}; "
            f"give a table with {image!r} and 'label'"
        )
    images, labels = table[image], table["label"]
    if not pa.types.is_struct(images.type) or images.type.get_field_index("bytes") < 0:
        raise DataError(
            f"{name}: column {image!r} is {images.type}; expected a struct with the `bytes` of an image file"
        )
    content = pc.struct_field(images, "bytes")
    if not pa.types.is_integer(labels.type) or labels.null_count or content.null_count:
        raise DataError(
            f"{name}: {content.null_count} rows without image bytes, {labels.null_count} without label, labels of type "
            f"{labels.type}; every row needs bytes and an integer class id"
        )
    return content.to_pylist(), torch.tensor(labels.to_pylist(), dtype=torch.int64)


def tensors(tables: dict[str, pa.Table], image: str) -> dict[str, Tensor]:
    """`pixels`, uint8 (N, 3, H, W), and `labels`, int64 (N,), of all rows of the named tables."""
    parts = {name: columns(name, table, image) for name, table in tables.items()}
    encoded = [(f"row {row} of {name}", item) for name, (rows, _) in parts.items() for row, item in enumerate(rows)]
    return {"pixels": decoded(encoded), "labels": torch.cat([labels for _, labels in parts.values()])}
