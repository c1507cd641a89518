"""The tensors that training moves, as users name them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from hydraprune.core.errors import SpecError
from hydraprune.core.spec import said


def named(model: nn.Module, params: Any) -> list[tuple[str, nn.Parameter]]:
    """`params`, (name, tensor) pairs or tensors that go by the names that `model` has for them, as pairs.

    Raises:
        SpecError: for anything else, for none at all, and for one that is not the model's, takes no gradient, or comes
            twice: training would not move it as asked, and say nothing.
    """
    if not isinstance(params, Iterable) or isinstance(params, str | Mapping | Tensor | nn.Module):
        raise SpecError(f"params is {said(params)}; give view.train('weights') or model.parameters()")
    own = {id(tensor): name for name, tensor in model.named_parameters()}
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for item in params:
        pair = isinstance(item, tuple | list) and len(item) == 2
        name, tensor = item if pair else (own.get(id(item)), item)
        shown = said(tensor) if name is None else repr(name)
        if id(tensor) not in own:
            raise SpecError(
                f"params: {shown} is no parameter of this {type(model).__name__}, so training would not move it; "
                "give parameters of the model itself, such as MaskView(model).train('weights')"
            )
        if not tensor.requires_grad:
            raise SpecError(
                f"params: {shown} takes no gradient, so training would not move it; leave it out, or call "
                "view.train(...) for this stage"
            )
        if id(tensor) in found:
            raise SpecError(f"params: {shown} comes twice; give each tensor once")
        found[id(tensor)] = (str(name), tensor)
    if not found:
        raise SpecError("params holds no tensors, so there is nothing to train; a generator can be read only once")
    return list(found.values())
