"""Records of single images, in a file of JSON lines from which a killed evaluation goes on."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Generic, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from hydraprune.core.errors import CheckpointError, EvaluationError
from hydraprune.core.plain import plain_copy
from hydraprune.core.spec import Spec, sentence

_START = b'{"index":'
"""How each line of a file begins: whatever else ends without a newline is not ours to cut off."""


class ImageRecord(Spec):
    """One line of the file.

    Args:
        index: place of the image in the data set, from 0.
        label: its class.
        prediction: the class that it is given.
        seconds: wall time.
        key: hash of network, image, label and settings.
    """

    index: int
    label: int
    prediction: int
    seconds: float
    key: str


R = TypeVar("R", bound=ImageRecord)


class Ledger(Generic[R]):
    """The records of one network under the same settings.

    Args:
        kind: of record.
        path: the file to write, or to continue; None keeps no file.
        model: the network.
        settings: all else that a record depends on, beside the image and its label.

    Raises:
        CheckpointError: if the file holds anything else than such records.
    """

    def __init__(self, kind: type[R], path: Path | None, model: nn.Module, settings: str) -> None:
        self._path = path
        self._known = {} if path is None else _read(kind, path)
        plain = plain_copy(model)
        # The layers too: a ReLU has no tensors.
        total = hashlib.sha256(f"{settings} {plain}".encode())
        for name, value in [*plain.named_parameters(), *plain.named_buffers()]:
            total.update(name.encode())
            total.update(_bytes(value))
        self._identity = total.digest()

    def key(self, image: Tensor, label: int) -> str:
        """What a record must have been made from."""
        return hashlib.sha256(self._identity + _bytes(image) + str(label).encode()).hexdigest()[:16]

    def find(self, index: int, key: str) -> R | None:
        """The record of an image, if there is one.

        Raises:
            CheckpointError: if it was made from something else.
        """
        record = self._known.get(index)
        if record is not None and record.key != key:
            raise CheckpointError(
                f"{self._path}: image {index} was certified for another network, image, setting or seed; "
                "restore them, or write to another file"
            )
        return record

    def add(self, record: R) -> None:
        """Append a line to the file.

        Raises:
            EvaluationError: if the disk refuses.
        """
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(record.model_dump_json().encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise EvaluationError(
                f"cannot write {self._path}: {error.strerror}; mend that and run the same call again"
            ) from None


def _read(kind: type[R], path: Path) -> dict[int, R]:
    """Index -> record. What follows the last newline was being written when the process was killed; it is cut off."""
    content = path.read_bytes() if path.exists() else b""
    *lines, rest = content.split(b"\n")
    records = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = kind.model_validate_json(line)
        except ValidationError as error:
            raise CheckpointError(f"{sentence(error, f'{path}:{number}')}; mend or remove the file") from None
        records[record.index] = record
    if rest:
        if not _START.startswith(rest[: len(_START)]):
            raise CheckpointError(f"{path} holds no certificates; write to another file")
        os.truncate(path, len(content) - len(rest))
    return records


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
