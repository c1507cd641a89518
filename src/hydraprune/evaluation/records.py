"""Records of single images, in a file of JSON lines from which a killed evaluation goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Generic, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from hydraprune.core.errors import CheckpointError, EvaluationError
from hydraprune.core.fingerprint import LENGTH, content, fingerprint
from hydraprune.core.plain import plain_copy
from hydraprune.core.spec import Sealed, sentence

_START = b'{"index":'
"""How each line of a file begins: whatever else ends without a newline is not ours to cut off."""


class ImageRecord(Sealed):
    """One line of the file.

    Args:
        index: place of the image in the data set, from 0.
        label: its class.
        prediction: the class that it is given.
        seconds: wall time.
        network: hash of the network, see `network_key`.
        made: fingerprint of the settings.
        image: hash of image and label.
    """

    index: int
    label: int
    prediction: int
    seconds: float
    network: str
    made: str
    image: str


R = TypeVar("R", bound=ImageRecord)


class Ledger(Generic[R]):
    """The records of one network under the same settings.

    Args:
        kind: of record.
        path: the file to write, or to continue; None keeps no file.
        network: hash of the network.
        made: fingerprint of all else that a record depends on, beside the image and its label.

    Raises:
        CheckpointError: if the file holds anything else than such records.
    """

    def __init__(self, kind: type[R], path: Path | None, network: str, made: str) -> None:
        self._path, self._network, self._made = path, network, made
        self._known = {} if path is None else _read(kind, path)

    def keys(self, image: Tensor, label: int) -> dict[str, str]:
        """The entries of a record that say what it is made from."""
        return {"network": self._network, "made": self._made, "image": content(image, torch.tensor(label))}

    def find(self, index: int, keys: Mapping[str, str]) -> R | None:
        """The record of an image, if there is one.

        Raises:
            CheckpointError: if it was made from something else.
        """
        record = self._known.get(index)
        if record is None:
            return None
        different = [name for name, key in keys.items() if getattr(record, name) != key]
        if different:
            words = {"network": "network", "made": "setting or seed", "image": "image or label"}
            others = " and another ".join(words[name] for name in different)
            raise CheckpointError(
                f"{self._path}: image {index} was certified for another {others}; restore it, or write to another file"
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
                file.write(json.dumps(record.plain(), separators=(",", ":")).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise EvaluationError(
                f"cannot write {self._path}: {error.strerror}; mend that and run the same call again"
            ) from None


def network_key(model: nn.Module) -> str:
    """A hexadecimal name for what a network computes: its tensors, masks applied, and its layers."""
    plain = plain_copy(model)
    total = hashlib.sha256(f"{plain}".encode())  # the layers too: a ReLU has no tensors
    for name, value in [*plain.named_parameters(), *plain.named_buffers()]:
        total.update(f"{name}{content(value)}".encode())
    return total.hexdigest()[:LENGTH]


def begin_anew(kind: type[R], path: Path, network: str, made: str) -> bool:
    """Put a file of records of another network or other settings aside; returns whether there was one.

    It lies beside as `NAME.jsonl.FINGERPRINT`, from where the same call with its settings takes it back.

    Raises:
        CheckpointError: if it is damaged or holds no records.
    """
    others = [(r.network, r.made) for r in _read(kind, path).values() if (r.network, r.made) != (network, made)]
    if others:
        path.replace(_aside(path, *others[0]))
    if not path.exists() and (mine := _aside(path, network, made)).exists():
        mine.replace(path)
    return bool(others)


def _aside(path: Path, network: str, made: str) -> Path:
    return path.with_name(f"{path.name}.{fingerprint(network=network, made=made)}")


def read_records(kind: type[R], path: Path, network: str) -> list[R]:
    """The records of that network in a file, in the order of their images.

    Raises:
        CheckpointError: if it is damaged or holds no records.
    """
    return [record for _, record in sorted(_read(kind, path).items()) if record.network == network]


def _read(kind: type[R], path: Path) -> dict[int, R]:
    """Index -> record. What follows the last newline was being written when the process was killed; it is cut off."""
    remedy = "mend it, or remove the file: its images are then measured again"
    try:
        written = path.read_bytes() if path.exists() else b""
        *lines, rest = written.split(b"\n")
        records = {}
        for number, line in enumerate(lines, start=1):
            try:
                record = kind.model_validate_json(line)
            except ValidationError as error:
                raise CheckpointError(f"{sentence(error, f'{path}:{number}')}; {remedy}") from None
            records[record.index] = record
        if rest:
            if not _START.startswith(rest[: len(_START)]):
                raise CheckpointError(f"{path} holds no certificates; write to another file")
            os.truncate(path, len(written) - len(rest))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); {remedy}") from None
    return records
