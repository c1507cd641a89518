"""An operation of a network, and what a rule that follows channels through it is given."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from hydraprune.masks.channels import Book, Signal


class Operation(NamedTuple):
    """An operation of a network on two images.

    Attributes:
        target: the module, the function, or the name of the method.
        args: values, tensors, numbers; the first is a value unless a rule says that it need not be.
        kwargs: the same by name.
        written: the arguments as the code has them; a size that it asks for is a node.
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    written: tuple[Any, ...]

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Do it on other arguments."""
        if isinstance(self.target, str):
            return getattr(args[0], self.target)(*args[1:], **kwargs)
        return self.target(*args, **kwargs)

    def again(self, take: Callable[[Signal], Tensor]) -> Any:
        """Do it on tensors in place of the values."""

        def taken(value: Any) -> Any:
            return take(value) if isinstance(value, Signal) else value

        args, kwargs = fx.node.map_aggregate((self.args, self.kwargs), taken)
        return self.run(*args, **kwargs)

    def stand_in(self) -> Any:
        """The result for tensors that are like those of the network."""
        return self.again(Signal.stand_in)

    def setting(self, position: int, *names: str) -> Any:
        """An argument by its position or one of its names; None without."""
        named = [self.kwargs[name] for name in names if name in self.kwargs]
        return named[0] if named else self.args[position] if len(self.args) > position else None

    def values(self) -> list[Signal]:
        """All values that it works on."""
        return found((self.args, self.kwargs), Signal)

    def tensors(self) -> list[Tensor]:
        """All tensors that it works on and that do not depend on the image."""
        return found((self.args, self.kwargs), Tensor)


class Mingled(Exception):
    """An operation that does not treat channels one by one."""


class Layers:
    """The tensors of a plain network by name, and the book of its channels.

    Attributes:
        names: id of a tensor -> its canonical name.
        owners: canonical name -> the layer that has it.
        shared: canonical name -> another one of the same tensor.
    """

    def __init__(self, model: nn.Module) -> None:
        self.book = Book()
        self.owners: dict[str, nn.Module] = {}
        same: defaultdict[int, list[str]] = defaultdict(list)
        for path, module in model.named_modules():
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None:
                    own = f"{path}.{name}" if path else name
                    self.owners[own] = module
                    same[id(tensor)].append(own)
        self.names = {tensor: names[0] for tensor, names in same.items()}
        self.shared = {names[0]: names[1] for names in same.values() if len(names) > 1}

    def name(self, tensor: Tensor, kind: type[nn.Module]) -> str:
        """The name of a tensor of a layer of this kind.

        Raises:
            Mingled: if it is none.
        """
        name = self.names.get(id(tensor), "")
        owner = self.owners.get(name)
        if not isinstance(owner, kind) or owner._forward_hooks or owner._forward_pre_hooks:
            raise Mingled
        return name


def found(args: Any, kind: type[Any]) -> list[Any]:
    """Everything of this type in nested arguments."""
    every: list[Any] = []
    fx.node.map_aggregate(args, lambda value: every.append(value) if isinstance(value, kind) else None)
    return every


def several(value: Any) -> tuple[Any, ...]:
    """A number as a tuple; a tuple or list as it is."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)
