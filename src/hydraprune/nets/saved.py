"""Files of tensors that others saved: read without unpickling objects, and without more memory than they hold."""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from hydraprune.core.errors import CheckpointError
from hydraprune.core.spec import some

SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".bin", ".ckpt")
"""Of the files that are looked for in a folder."""
WRAPPINGS = ("state_dict", "model_state_dict", "model", "net")
"""What programs that train call the state dict in what they save."""
PARALLEL = ("module.", "_orig_mod.")
"""What data parallelism and compilation put before the name of every tensor."""
NUMBERS = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}
OF_TENSORS = ("torch.", "collections.", "_codecs.")
"""Where the classes and functions come from that a file of tensors names."""
PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""What these modules are called in files that `torch.save` writes."""
NAMES = 256
"""So many of them a file may name, and of others."""


class _Left:
    """Stands for an object that is no tensor: a program's arguments, a number of numpy's. It holds and does nothing."""

    def __new__(cls, *_: object) -> _Left:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU, without the prefixes `module.` and `_orig_mod.`.

    Floats of fewer bits become float32.
    The state dict may be bare, or lie under `state_dict`, `model_state_dict`, `model` or `net`. Other objects beside
    it, such as the arguments of a program, are not made: what would make them is neither imported nor called.

    Args:
        path: a `.safetensors` file, or one that `torch.save` wrote; or a folder with one of them in it.

    Raises:
        CheckpointError: if there is no such file, or several, or it is damaged, claims more memory than it has bytes,
            or holds no state dict.
    """
    path = found_in(path)
    left: list[str]
    try:
        content, left = (load_file(path), []) if path.suffix == ".safetensors" else _torch_file(path)
    except Exception as error:  # damage shows in as many ways as there are bytes
        raise CheckpointError(
            f"{path} is damaged, or holds objects other than tensors, which are never unpickled "
            f"({type(error).__name__}); fetch it again, or save its state dict alone as .safetensors"
        ) from error
    where = f"{path} (with {some(left)}, never unpickled)" if left else str(path)
    state = unwrapped(content, where)
    size = path.stat().st_size
    for name, tensor in state.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.dtype in NUMBERS
        if not plain or tensor.nbytes > size:
            raise CheckpointError(f"{path}: {name!r} is no plain tensor of the file's own bytes; save dense tensors")
    small = [name for name, tensor in state.items() if tensor.is_floating_point() and tensor.itemsize < 4]
    return state | {name: state[name].float() for name in small}  # with which one cannot calculate


def unwrapped(content: Any, where: str) -> dict[str, Tensor]:
    """The state dict in what a program saved.

    Raises:
        CheckpointError: if there is none; it starts with `where`.
    """
    for key in WRAPPINGS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(map(_named_tensor, content.items())):
        raise CheckpointError(f"{where} holds no state dict; save `model.state_dict()`, bare or under `state_dict`")
    state = {}
    for name, tensor in content.items():
        bare = name
        while bare.startswith(PARALLEL):
            bare = bare.partition(".")[2]
        if bare in state:
            raise CheckpointError(f"{where} holds {bare!r} twice, with and without {PARALLEL[0]!r}; keep one of them")
        state[bare] = tensor.detach()
    return state


def found_in(path: str | Path) -> Path:
    """The file at `path`, or the one checkpoint in the folder there.

    Raises:
        CheckpointError: if there is none, or there are several, which it names.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
        if len(found) > 1:
            raise CheckpointError(
                f"{path} holds several checkpoints ({some([f.name for f in found], 8)}); name the file"
            )
        path = found[0] if found else path
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give the path of a .safetensors, .pth, .pt or .tar checkpoint")
    return path


def _torch_file(path: Path) -> tuple[Any, list[str]]:
    """What `torch.save` wrote, and the names of what is left out of it."""
    with path.open("rb") as file:
        named = sorted(_named(file))
        if len(named) > NAMES:
            raise ValueError(f"it names {len(named)} classes and functions")
        file.seek(0)
        # What torch knows as safe comes before what stands in.
        with torch.serialization.safe_globals([(_Left, name) for name in named]):
            content = torch.load(file, map_location="cpu", weights_only=True)
    return content, [name for name in named if not name.startswith(OF_TENSORS)]


def _named(file: BufferedReader) -> set[str]:
    """Classes and functions that the file names, of which nothing is imported; and a look at what it claims."""
    if file.read(4) != b"PK\x03\x04":
        file.seek(0)
        # Before torch 1.6: a magic number, a version, a machine, the content and a list of storages.
        return {name for _ in range(5) for name in _globals(file)}
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > file.seek(0, 2):
            raise ValueError("it claims more bytes than it has")  # torch never compresses
        (pickled,) = (entry for entry in entries if entry.filename.endswith("/data.pkl"))
        with archive.open(pickled) as stream:
            return set(_globals(stream))


def _globals(stream: Any) -> Iterator[str]:
    for operation, argument, _ in pickletools.genops(stream):
        if operation.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            yield f"{PYTHON_2.get(module, module)}.{name}"


def _named_tensor(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)
