"""What is removed together: a structure pools the scores of a weight tensor into groups."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from hydraprune.core.lazy import lazy
from hydraprune.core.spec import Spec
from hydraprune.masks import STRUCTURES


class Structure(Spec, ABC):
    """Groups of weights that live and die together.

    Weights of every layer are seen as (G, O, I, K): convolution groups, output and input channels of each, and kernel
    positions. By itself a structure takes them for those of a linear layer or an ungrouped convolution; `on` gives the
    same structure for another layer.
    """

    kind: str
    spans: ClassVar[bool] = False
    """Whether groups reach over layers, so that they are found in the network as a whole."""
    _convolutions: int = PrivateAttr(1)
    _transposed: bool = PrivateAttr(False)

    def on(self, module: Any) -> Self:
        """This structure for the weight of `module`, which may be a grouped or a transposed convolution."""
        bound = self.model_copy()
        bound._convolutions = getattr(module, "groups", 1)
        bound._transposed = getattr(module, "transposed", False)
        return bound

    @property
    def sparsity(self) -> float | None:
        """The fraction of groups that the structure itself removes; None leaves the choice to a budget."""
        return None

    def decided(self, shape: tuple[int, ...]) -> int | None:
        """Groups that the structure itself keeps of a weight tensor; None leaves the choice to a budget."""
        return None

    @abstractmethod
    def groups(self, shape: tuple[int, ...]) -> int:
        """How many groups a weight tensor of this shape has."""

    def sizes(self, shape: tuple[int, ...]) -> Tensor:
        """(groups,) weights in each group."""
        groups = self.groups(shape)
        return torch.full((groups,), math.prod(shape) // groups)

    @abstractmethod
    def pool(self, score: Tensor) -> Tensor:
        """Importance (groups,), at least 0, of signed scores of the weight's shape."""

    @abstractmethod
    def expand(self, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        """(groups,) bool to the mask of the weight's shape."""

    def _sides(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """(G, O, I, K) of a stored weight."""
        first, second, kernel = shape[0] // self._convolutions, shape[1], math.prod(shape[2:])
        outputs, inputs = (second, first) if self._transposed else (first, second)
        return self._convolutions, outputs, inputs, kernel

    def _laid_out(self, score: Tensor) -> Tensor:
        """|score| as (G, O, I, K)."""
        stored = score.detach().abs().reshape(self._convolutions, -1, score.shape[1], math.prod(score.shape[2:]))
        return stored.transpose(1, 2) if self._transposed else stored

    def _stored(self, mask: Tensor, shape: tuple[int, ...]) -> Tensor:
        """What broadcasts to (G, O, I, K) in the weight's shape."""
        mask = mask.expand(self._sides(shape))
        return (mask.transpose(1, 2) if self._transposed else mask).reshape(shape)


class Weight(Structure):
    """Single weights: each is a group of its own (unstructured pruning)."""

    kind: Literal["weight"] = "weight"

    def groups(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape)

    def pool(self, score: Tensor) -> Tensor:
        return score.detach().abs().flatten()

    def expand(self, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        return kept.view(shape)


class Filter(Structure):
    """Output filters: all weights that make one output channel; their importance is the mean of |score|.

    Those of a classifier are whole classes, so leave it out: `exempt: [last]`, or `MaskView(model, ["last"])`.
    """

    kind: Literal["filter"] = "filter"

    def groups(self, shape: tuple[int, ...]) -> int:
        convolutions, outputs, _, _ = self._sides(shape)
        return convolutions * outputs

    def pool(self, score: Tensor) -> Tensor:
        return self._laid_out(score).mean((2, 3)).flatten()

    def expand(self, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        return self._stored(kept.view(*self._sides(shape)[:2], 1, 1), shape)


class _Inputs(Structure, ABC):
    """All weights of a layer that read one input channel."""

    def groups(self, shape: tuple[int, ...]) -> int:
        convolutions, _, inputs, _ = self._sides(shape)
        return convolutions * inputs

    def expand(self, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        convolutions, _, inputs, _ = self._sides(shape)
        return self._stored(kept.view(convolutions, 1, inputs, 1), shape)


class Channel(_Inputs):
    """Input channels: all weights that read one input channel; their importance is the mean of |score|."""

    kind: Literal["channel"] = "channel"

    def pool(self, score: Tensor) -> Tensor:
        return self._laid_out(score).mean((1, 3)).flatten()


class Coupled(_Inputs):
    """Channels with all that makes and reads them, through the graph of the network (arXiv:2301.12900).

    Filters whose outputs are added up, as in residual streams, live and die with each other and with the weights of
    every layer that reads them, so `shrink` takes them out of the network and its logits stay the same. The importance
    of a channel is the L2 norm of the scores of the weights that read it. Budgets share out whole sets of channels,
    each called by the weight that makes them first. What cannot be removed, such as channels that attention mixes,
    stays, and so does every set that an exempt layer makes or reads.

    Sample: `structure: coupled` in a stage with pruner `magnitude` or `gradual`
    """

    kind: Literal["coupled"] = "coupled"
    spans: ClassVar[bool] = True

    def pool(self, score: Tensor) -> Tensor:
        return self._laid_out(score).square().sum((1, 3)).sqrt().flatten()


class Block(Structure):
    """Tiles of the matrix from inputs to outputs, one such matrix for every kernel position and convolution group.

    A tile at the edge may be smaller. Importance is the mean of |score| over the weights that are there.

    Args:
        rows: output channels of a tile.
        columns: input channels of a tile.
    """

    kind: Literal["block"] = "block"
    rows: int = Field(default=4, ge=1)
    columns: int = Field(default=1, ge=1)

    def groups(self, shape: tuple[int, ...]) -> int:
        return math.prod(self._tiles(shape))

    def sizes(self, shape: tuple[int, ...]) -> Tensor:
        _, outputs, inputs, _ = self._sides(shape)
        high, wide = (
            (length - side * torch.arange(-(-length // side))).clamp_max(side)
            for length, side in ((outputs, self.rows), (inputs, self.columns))
        )
        return (high[:, None] * wide)[None, :, :, None].expand(self._tiles(shape)).flatten()

    def pool(self, score: Tensor) -> Tensor:
        _, outputs, inputs, _ = self._sides(tuple(score.shape))
        padded = F.pad(self._laid_out(score), (0, 0, 0, -inputs % self.columns, 0, -outputs % self.rows))
        tiles = padded.unflatten(2, (-1, self.columns)).unflatten(1, (-1, self.rows))
        return tiles.sum((2, 4)).flatten() / self.sizes(tuple(score.shape)).to(score.device)

    def expand(self, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        _, outputs, inputs, _ = self._sides(shape)
        rows = kept.view(self._tiles(shape)).repeat_interleave(self.rows, 1)[:, :outputs]
        return self._stored(rows.repeat_interleave(self.columns, 2)[:, :, :inputs], shape)

    def _tiles(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        convolutions, outputs, inputs, kernel = self._sides(shape)
        return convolutions, -(-outputs // self.rows), -(-inputs // self.columns), kernel


class NOfM(Structure):
    """`n` of every `m` neighbours along the input channels stay, as sparse tensor cores want (arXiv:2104.08378).

    Where inputs are no multiple of `m`, as in a first layer of 3 channels, the last neighbours are fewer and at most
    `n` of them stay. The pattern says how many weights stay, so it takes no budget.

    Args:
        n: weights that stay.
        m: of how many.

    Sample: `structure: {kind: "n:m", n: 2, m: 4}` in a stage without `budget`
    """

    kind: Literal["n:m"] = "n:m"
    n: int = Field(default=2, ge=1)
    m: int = Field(default=4, ge=2)

    @model_validator(mode="after")
    def _removes(self) -> NOfM:
        if self.n >= self.m:
            raise ValueError(f"{self.n} of every {self.m} weights removes none; choose n below m, such as 2:4")
        return self

    @property
    def sparsity(self) -> float:
        return 1 - self.n / self.m

    def decided(self, shape: tuple[int, ...]) -> int:
        convolutions, outputs, inputs, kernel = self._sides(shape)
        return convolutions * outputs * kernel * (inputs // self.m * self.n + min(inputs % self.m, self.n))

    def groups(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape)

    def beyond(self, weight: Tensor) -> int:
        """How many weights other than zero there are beyond `n` of every `m`."""
        there = self._laid_out(weight) != 0
        runs = F.pad(there, (0, 0, 0, -there.shape[2] % self.m)).unflatten(2, (-1, self.m)).sum(3)
        return int((runs - self.n).clamp_min(0).sum())

    def pool(self, score: Tensor) -> Tensor:
        """|score|, lifted above all others for the `n` best of every `m`: the best `decided` ones are the pattern."""
        laid_out = self._laid_out(score)
        inputs = laid_out.shape[2]
        runs = F.pad(laid_out, (0, 0, 0, -inputs % self.m), value=-1).unflatten(2, (-1, self.m)).movedim(3, 0)
        runs = runs.contiguous()  # comparing whole tensors is several times faster than along runs of 4
        better = torch.zeros_like(runs, dtype=torch.int8)
        for place, one in enumerate(runs):
            better[:place] += one >= runs[:place]
            better[place + 1 :] += one > runs[place + 1 :]
        lifted = torch.where(better < self.n, runs + 2 * laid_out.amax() + 1, runs)
        return lifted.movedim(0, 3).flatten(2, 3)[:, :, :inputs].flatten()

    def expand(self, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        return self._stored(kept.view(self._sides(shape)), shape)


# Those of other packages.
__getattr__, __dir__ = lazy(__name__, STRUCTURES.classes)
