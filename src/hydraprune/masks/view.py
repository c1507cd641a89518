"""A model seen as prunable weights: attach masks, choose what trains, freeze, bake."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from hydraprune.core.errors import PruningError
from hydraprune.core.plain import canonical, plain_copy, unparametrized
from hydraprune.core.spec import nearest, said
from hydraprune.masks.names import exempt as exempted
from hydraprune.masks.source import MaskSource, Over, frozen

PRUNABLE = (nn.modules.conv._ConvNd, nn.Linear)
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class LayerCount:
    """Weights of one tensor: `kept` of `total`."""

    kept: int
    total: int


class MaskView:
    """The prunable weights of `model`, by canonical name: those of convolutions, linear layers and attention.

    They are what multiplies activations. Embeddings, positions and the like stay out; `outside` lists them.
    A weight that several layers share goes by its first name, and its mask applies to all of them.
    The model itself is changed in place by `attach`; everyone who reads `module.weight` then sees the masked weight.

    Args:
        model: any module.
        exempt: names of layers, or patterns such as `*.shortcut.*`, or `first` and `last`: they are never masked, but
            counts cover them.

    Raises:
        PruningError: if the model has no such weight, or a layer without one yet (lazy layers), if something else
            already computes one (spectral or weight normalisation), or if an exempt layer is unknown.
    """

    def __init__(self, model: nn.Module, exempt: str | Iterable[str] = ()) -> None:
        self.model = model
        self.modules: dict[str, list[Any]] = {}
        self._exempt: dict[str, nn.Parameter] = {}
        names: dict[int, str] = {}
        if not isinstance(model, nn.Module):
            raise PruningError(f"there is nothing to prune in {said(model)}; give a network (torch.nn.Module)")
        for path, module in model.named_modules():
            for tensor in _multiplying(module):
                _own(path, module, tensor)
                own = canonical(f"{path}.{tensor}" if path else tensor)
                name = names.setdefault(id(_stored(module, tensor)), own)
                self.modules.setdefault(name, []).append(module)
        if not self.modules:
            raise PruningError(
                f"{type(model).__name__} has no convolution, linear layer or attention, so there is nothing to prune"
            )
        for name in exempted(exempt, self.modules):
            self._exempt[name] = _stored(self.modules.pop(name)[0], _tensor(name))

    @property
    def sources(self) -> dict[str, MaskSource]:
        """The mask of every weight that has one."""
        return {
            name: module.parametrizations[_tensor(name)][0]
            for name, (module, *_) in self.modules.items()
            if parametrize.is_parametrized(module, _tensor(name))
        }

    @property
    def exempt(self) -> list[str]:
        """The weights that are never masked."""
        return list(self._exempt)

    def stored(self) -> dict[str, nn.Parameter]:
        """The weights as they are stored, without masks."""
        return {name: _stored(module, _tensor(name)) for name, (module, *_) in self.modules.items()}

    def weights(self) -> dict[str, Tensor]:
        """The same, detached."""
        return {name: weight.detach() for name, weight in self.stored().items()}

    def masks(self) -> dict[str, Tensor]:
        """Canonical name -> mask (bool, the weight's shape), for the weights that have one."""
        return {name: source.current() for name, source in self.sources.items()}

    def attach(self, sources: Mapping[str, MaskSource]) -> None:
        """Put a mask on each named weight, in place of the one that it may have.

        Raises:
            PruningError: if a name is no prunable weight, or a mask has another shape than its weight.
        """
        weights = self.weights()
        for name, source in sources.items():
            if name not in weights:
                raise PruningError(
                    f"{name!r} is no prunable weight of {type(self.model).__name__}; {nearest(name, weights)}"
                )
            here, there = tuple(source.current().shape), tuple(weights[name].shape)
            if here != there:
                raise PruningError(f"the mask of {name!r} has shape {here}, but the weight has {there}")
        for name, source in sources.items():
            for module in self.modules[name]:
                if parametrize.is_parametrized(module, _tensor(name)):
                    # Not `remove_parametrizations`: it deletes from the class, which a deep copy of the model shares.
                    module.parametrizations[_tensor(name)][0] = source
                else:
                    # The shape was checked above; torch's own check would call the source once and keep its result.
                    parametrize.register_parametrization(module, _tensor(name), source, unsafe=True)

    def detach(self, names: Iterable[str]) -> None:
        """Take the masks off these weights; what is stored is then what acts."""
        for name in names:
            for module in self.modules[name]:
                parts = dict(module.parametrizations.items())
                unparametrized(module, {tensor: part.original for tensor, part in parts.items()})
                for tensor in parts.keys() - {_tensor(name)}:
                    parametrize.register_parametrization(module, tensor, parts[tensor][0], unsafe=True)

    @torch.no_grad()
    def freeze(self) -> None:
        """Fix every mask at what it selects now; learned scores are dropped."""
        stored = self.weights()
        for name, source in self.sources.items():
            stored[name].copy_(source.settled(stored[name]))
        self.attach({name: frozen(source) for name, source in self.sources.items()})

    def train(self, over: Over, *, train_norm: bool = True) -> list[tuple[str, nn.Parameter]]:
        """Set `requires_grad` for a stage, and return the (canonical name, parameter) pairs that it moves.

        `weights`: every parameter but the scores. `scores`: the scores and, with `train_norm`, the scale and shift of
        the norm layers; all other weights and biases are frozen. What else a mask learns moves when it says so.

        Raises:
            PruningError: if there are no scores to train, or `over` is another word; nothing has changed then.
        """
        if over not in get_args(Over):
            raise PruningError(f"cannot train over {over!r}; {nearest(str(over), get_args(Over))}")
        of_masks = {
            id(parameter): (source.over, f"{kind}:{name}")
            for name, source in self.sources.items()
            for kind, parameter in source.named_parameters()
        }
        norms = {id(p) for m in self.model.modules() if isinstance(m, NORMS) for p in m.parameters(recurse=False)}
        if over == "scores" and not any(moved == over for moved, _ in of_masks.values()):
            raise PruningError("there are no scores to train: this pruner fixes its mask at once; use `epochs: 0`")
        chosen = []
        for name, parameter in self.model.named_parameters():
            moved, label = of_masks.get(id(parameter), ("weights", canonical(name)))
            moves = moved == over or (over == "scores" and train_norm and id(parameter) in norms)
            parameter.requires_grad_(moves)
            if moves:
                chosen.append((label, parameter))
        return chosen

    def bake(self) -> nn.Module:
        """A plain copy with the masks multiplied in: pruned weights are exactly zero."""
        return plain_copy(self.model)

    @torch.no_grad()
    def counts(self) -> dict[str, LayerCount]:
        """Kept and total weights of every prunable tensor, counted by mask; without a mask all are kept."""
        masks = self.masks()
        return {
            name: LayerCount(int(masks[name].sum()) if name in masks else weight.numel(), weight.numel())
            for name, weight in {**self._exempt, **self.weights()}.items()
        }

    def count(self) -> LayerCount:
        """The sum of `counts` over layers."""
        layers = self.counts().values()
        return LayerCount(sum(layer.kept for layer in layers), sum(layer.total for layer in layers))

    def outside(self) -> dict[str, int]:
        """Canonical name -> numbers in it, of every parameter of at least two dimensions that is not prunable."""
        prunable = {id(weight) for weight in (*self._exempt.values(), *self.stored().values())}
        of_masks = {id(p) for source in self.sources.values() for p in source.parameters()}
        return {
            canonical(name): parameter.numel()
            for name, parameter in self.model.named_parameters()
            if parameter.dim() > 1 and id(parameter) not in prunable | of_masks
        }

    def count_all(self) -> LayerCount:
        """The same of all parameters of the model, what is not prunable being kept."""
        of_masks = sum(p.numel() for source in self.sources.values() for p in source.parameters())
        total, prunable = sum(p.numel() for p in self.model.parameters()) - of_masks, self.count()
        return LayerCount(total - prunable.total + prunable.kept, total)


def _multiplying(module: nn.Module) -> tuple[str, ...]:
    """The tensors of `module` itself that multiply activations, by name."""
    if isinstance(module, nn.MultiheadAttention):
        return (
            ("in_proj_weight",) if module._qkv_same_embed_dim else ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        )
    return ("weight",) if isinstance(module, PRUNABLE) else ()


def _tensor(name: str) -> str:
    """What a layer calls the weight of that canonical name."""
    return name.rpartition(".")[2]


def _own(path: str, module: Any, tensor: str) -> None:
    """See that this weight of `module` is a parameter, or masked by us."""
    masked = parametrize.is_parametrized(module, tensor)
    sources = [*module.parametrizations[tensor]] if masked else []
    ours = all(isinstance(source, MaskSource) for source in sources)
    if not ours or not isinstance(_stored(module, tensor), nn.Parameter):
        by = ", ".join(type(source).__name__ for source in sources) or "a hook"
        raise PruningError(
            f"the weight of layer {path!r} is computed by {by}, such as spectral or weight normalisation, so a mask on "
            "it would not hold; remove that first (torch.nn.utils.parametrize.remove_parametrizations)"
        )
    if is_lazy(_stored(module, tensor)):
        raise PruningError(f"layer {path!r} is lazy and has no weight yet; run the network once on some images")


def _stored(module: Any, tensor: str) -> nn.Parameter:
    """A weight of `module` before its mask."""
    masked = parametrize.is_parametrized(module, tensor)
    return module.parametrizations[tensor].original if masked else getattr(module, tensor)
