"""How others lay out a state dict: their names, scores, masks and constants, as weights and masks."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import softplus

from hydraprune.core.errors import CheckpointError, SpecError
from hydraprune.core.spec import nearest, some

State = Mapping[str, Tensor]
SCORES, RATE, SOFT = ".popup_scores", ".k_score", ".mask_weight"
ALPHA = 0.1
"""HARP keeps at least this part of `keep` in each layer: its default, which files do not say."""
FLOOR = 1e-4
"""What MAD's code multiplies a removed weight by."""
CONSTANTS = (("mu", "sigma"), ("mean", "std"), ("normalize.mean", "normalize.std"), ("0.mean", "0.std"))
"""What networks that normalise their images call mean and standard deviation."""
PWOA = (2, 2, 3, 3, 3)
"""Convolutions in each of the first five layers of PwoA's VGG-16; pooling ends a layer, linear layers follow."""


@dataclass(frozen=True)
class Plain:
    """A state dict without anybody's scores.

    Attributes:
        tensors: name -> tensor, masks applied.
        masks: name of a weight -> mask (bool, its shape), where the file says which weights stay.
        normalize: mean and standard deviation of each channel, where the file holds them.
        pruner: who chose the masks.
        layout: as which the file was read; `plain` is under the names of the network.
        notes: what was left out, renamed and guessed.
    """

    tensors: dict[str, Tensor]
    masks: dict[str, Tensor] = field(default_factory=dict)
    normalize: tuple[list[float], list[float]] | None = None
    pruner: str | None = None
    layout: str = "plain"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """One way to lay out a state dict.

    Attributes:
        marks: the names that it alone has, by which it is recognised.
        read: weights and masks of a state dict, given the share that is kept and where it comes from.
    """

    marks: re.Pattern[str]
    read: Callable[[State, float | None, str], Plain]

    def seen(self, names: Collection[str]) -> list[str]:
        """Those of `names` that it alone has."""
        return [name for name in names if self.marks.search(name)]


def plain(
    state: State, expected: Collection[str], where: str, layout: str = "auto", keep: float | None = None
) -> Plain:
    """`state` as weights and masks, whoever laid it out.

    Args:
        state: name -> tensor.
        expected: the names of the network's own tensors, by which no layout is recognised.
        where: what the state comes from, for errors.
        layout: a name in `LAYOUTS`; `auto` recognises it.
        keep: share of the weights that scores keep, in (0, 1]: of each layer with HYDRA's, of the network with HARP's;
            1 takes the weights dense. None for files without scores.

    Raises:
        SpecError: for an unknown layout, or a share out of range.
        CheckpointError: if the file has the marks of another layout or of several, or its scores do not fit its
            weights, or `keep` is needed.
    """
    if layout not in (*LAYOUTS, "auto"):
        raise SpecError(f"there is no format {layout!r}; {nearest(layout, [*LAYOUTS, 'auto'])}")
    share(keep)
    foreign = [name for name in state if name not in expected]
    seen = {name: marks for name, one in LAYOUTS.items() if (marks := one.seen(foreign))}
    if "harp" in seen:
        seen.pop("hydra", None)  # whose scores HARP's files hold too
    if layout == "auto" and len(seen) > 1:
        several = " and ".join(f"{some(marks, 1)} of {name}" for name, marks in seen.items())
        raise CheckpointError(f"{where} holds {several}; say which it is: --format {' or --format '.join(seen)}")
    chosen = next(iter(seen), None) if layout == "auto" else layout
    if chosen is None:
        return Plain(dict(state), notes=("read as it is",))
    if others := [name for name in ("harp", "hydra") if name in seen and name != chosen]:
        raise CheckpointError(f"{where} holds {some(seen[others[0]], 1)}, so it is {others[0]}: --format {others[0]}")
    found = LAYOUTS[chosen].read(state, keep, where)
    return replace(found, layout=chosen, notes=(f"read as {chosen}", *found.notes))


def share(keep: float | None) -> None:
    """See that `keep` is a share, or None.

    Raises:
        SpecError: if it is out of range.
    """
    if keep is not None and not 0 < keep <= 1:
        raise SpecError(f"k is {keep}; give the kept fraction of the checkpoint, in (0, 1]")


def hydra(state: State, keep: float | None, where: str) -> Plain:
    """The HYDRA authors' checkpoints (arXiv:2002.10509): dense weights and `popup_scores`, or weights with zeros.

    They do not say what share counts. Each layer of n weights loses the int((1 - k) n) with the smallest absolute
    scores; of equal ones those with the smaller flat index.
    """
    scores = _layers(state, where)
    if not scores:
        return Plain(dict(state), pruner="hydra")
    keep = _needed(keep, where, "share of each layer")
    for layer, score in scores.items():
        if score.shape != state[f"{layer}.weight"].shape:
            raise _misfit(where, layer, score)
    return _scored(state, uniform(scores, keep), "hydra", f"kept {keep:g} of each layer, by {len(scores)} scores")


def scores_in(state: State) -> dict[str, Tensor]:
    """Layer -> the scores of its weight."""
    return {name.removesuffix(SCORES): score for name, score in state.items() if name.endswith(SCORES)}


def uniform(scores: State, keep: float) -> dict[str, Tensor]:
    """Name of a weight -> its mask, with the same share of each layer; see `hydra`."""
    return {f"{layer}.weight": largest(score, int((1 - keep) * score.numel())) for layer, score in scores.items()}


def harp(state: State, keep: float | None, where: str) -> Plain:
    """HARP's checkpoints (arXiv:2412.14714): scores, and `k_score`, which gives the share of a layer.

    A layer keeps r = a k + (1 - a k) sigmoid(k_score), k being that of the network, which files do not hold, and a the
    code's default. Scores of the weight's shape remove the int((1 - r) n) smallest; scores (1, C, 1, 1) or (1, C) keep
    round(r C) input channels. The code computes in float32.
    """
    layers = _layers(state, where)
    keep = _needed(keep, where, "share of the network")
    masks = {}
    for layer, score in layers.items():
        weight, rate = state[f"{layer}.weight"], state.get(f"{layer}{RATE}")
        if rate is None or rate.numel() != 1 or not _sound(rate):
            raise CheckpointError(f"{where}: {layer}{RATE} is no single number; fetch the file again")
        least = ALPHA * keep
        kept = least + (1 - least) * torch.sigmoid(rate.reshape(()).float()) if keep < 1 else torch.ones(())
        if score.shape == weight.shape:
            masks[f"{layer}.weight"] = largest(score, int((1 - kept) * score.numel()))
        elif weight.dim() > 1 and score.shape == (1, weight.shape[1], *[1] * (weight.dim() - 2)):
            channels = largest(score, score.numel() - int(torch.round(kept * score.numel())))
            masks[f"{layer}.weight"] = channels.expand(weight.shape).clone()
        else:
            raise _misfit(where, layer, score)
    state = {name: tensor for name, tensor in state.items() if not name.endswith(RATE)}
    found = _scored(state, masks, "harp", f"each layer's share by its {RATE[1:]}, for {keep:g} of the network")
    return replace(found, notes=(*found.notes, f"guessed: HARP's alpha is its default, {ALPHA:g}"))


def benchmark(state: State, keep: float | None, where: str) -> Plain:
    """State dicts of the adversarial pruning benchmark (arXiv:2409.01249) that are neither HYDRA's nor HARP's.

    Its ResNet-18 has the names of ours, pruned weights being 0. MAD's files multiply each weight and bias by the
    softplus of a `mask_weight` or `mask_bias`, which is 1e-4 for what is removed. PwoA's VGG-16 calls its layers
    `layer1.0.0` to `layer8`, and its convolutions have biases, which go into the means of the batch norms after them.
    Twin-Rep's files are not read: the names of their factors are not known here. Other networks than ours, such as
    Flying Bird's PreAct ResNet, need a factory of theirs.
    """
    if any(name.endswith(SOFT) for name in state):
        return _mad(state, where)
    if "layer8.weight" in state:
        return _pwoa(state, where)
    return Plain(dict(state))


def robustbench(state: State, keep: float | None, where: str) -> Plain:
    """Checkpoints of RobustBench's zoo (arXiv:2010.09670), HYDRA's WRN-28-10 among them, and DNR's (arXiv:2011.03083).

    Wide residual networks have the names of ours, with the group `sub_block1`. Some hold the constants by which they
    normalise images (`mu` and `sigma`; DNR's, as the first of two modules, `0.mean` and `0.std`). Those that hold none
    may normalise all the same, in code: HYDRA's does not.
    """
    constants, rest = None, dict(state)
    for names in CONSTANTS:
        if all(name in rest for name in names):
            constants = [rest.pop(name) for name in names]
    if constants is None:
        return Plain(rest)
    if any(one.numel() > 16 or not one.is_floating_point() for one in constants):
        raise CheckpointError(f"{where}: its mean and deviation are not those of an image's channels")
    if any(name.startswith("1.") for name in rest) and "0.mean" in state:
        rest = {name.removeprefix("1."): tensor for name, tensor in rest.items()}
    mean, std = ([round(value, 6) for value in one.double().flatten().tolist()] for one in constants)
    return Plain(rest, normalize=(mean, std))


def as_named(state: State, keep: float | None, where: str) -> Plain:
    """The tensors of a library's network, under its names; pruned weights are 0."""
    return Plain(dict(state))


NONE = re.compile(r"(?!)")
LAYOUTS = {
    "hydra": Layout(re.compile(r"\.popup_scores$"), hydra),
    "harp": Layout(re.compile(r"\.k_score$"), harp),
    "benchmark": Layout(re.compile(r"\.mask_weight$|^layer8\.weight$"), benchmark),
    "robustbench": Layout(re.compile(r"^(mu|sigma|(0\.|normalize\.)?(mean|std))$"), robustbench),
    "torchvision": Layout(NONE, as_named),
    "timm": Layout(NONE, as_named),
}
"""The formats of `hydraprune import`, by name."""


def largest(score: Tensor, removed: int) -> Tensor:
    """The mask (bool, the score's shape) without the `removed` smallest absolute values, of equal ones the first."""
    size = score.abs().flatten()
    if removed < 1:
        return torch.ones(score.shape, dtype=torch.bool)
    threshold = size.kthvalue(removed).values
    mask = size >= threshold
    ties = (size == threshold).nonzero().flatten()
    mask[ties[: removed - int((~mask).sum())]] = False
    return mask.view(score.shape)


def _layers(state: State, where: str) -> dict[str, Tensor]:
    """The same, each of a layer that has a weight."""
    scores = scores_in(state)
    for layer, score in scores.items():
        if f"{layer}.weight" not in state or not _sound(score):
            raise _misfit(where, layer, score)
    return scores


def _misfit(where: str, layer: str, score: Tensor) -> CheckpointError:
    return CheckpointError(
        f"{where}: the scores {layer}{SCORES} {tuple(score.shape)} are not finite, or not those of a weight; "
        "fetch the file again"
    )


def _sound(*tensors: Tensor) -> bool:
    return all(tensor.is_floating_point() and bool(tensor.isfinite().all()) for tensor in tensors)


def _needed(keep: float | None, where: str, what: str) -> float:
    if keep is None:
        raise CheckpointError(
            f"{where} holds scores of the HYDRA authors' code, which mask its weights; say what {what} it keeps, "
            "their k: --keep 0.1 (`net.keep=0.1` in a recipe), or 1 for the dense weights"
        )
    return keep


def _scored(state: State, masks: dict[str, Tensor], pruner: str, note: str) -> Plain:
    tensors = {name: tensor for name, tensor in state.items() if not name.endswith(SCORES)}
    tensors |= {name: tensors[name].masked_fill(~mask, 0) for name, mask in masks.items()}
    return Plain(tensors, masks, pruner=pruner, notes=(note,))


def _mad(state: State, where: str) -> Plain:
    tensors, masks, low = dict(state), {}, 0
    for name in [name for name in state if name.rpartition(".")[2] in ("mask_weight", "mask_bias")]:
        factor, masked = tensors.pop(name), name.replace("mask_", "")
        if masked not in state or state[masked].shape != factor.shape or not _sound(state[masked], factor):
            raise CheckpointError(f"{where}: {name} {tuple(factor.shape)} is no mask of {masked}; fetch the file again")
        scale = softplus(factor.float())
        stays = scale > 2 * FLOOR
        low += int((~stays).sum())
        tensors[masked] = (state[masked] * scale).masked_fill(~stays, 0)
        if name.endswith(SOFT):
            masks[masked] = tensors[masked] != 0
    note = (
        f"guessed: {low} numbers whose factor is at most {2 * FLOOR:g}, for which the code has {FLOOR:g}, are removed"
    )
    return Plain(tensors, masks, pruner="mad", notes=(note,))


def _pwoa(state: State, where: str) -> Plain:
    names, at = {f"layer{6 + i}.0": f"classifier.{2 * i}" for i in range(2)} | {"layer8": "classifier.4"}, 0
    convolutions = {}
    for layer, count in enumerate(PWOA, 1):
        for place in range(count):
            names |= {f"layer{layer}.{place}.{part}": f"features.{at + part}" for part in range(2)}
            convolutions[f"features.{at}"] = f"features.{at + 1}"
            at += 3
        at += 1
    tensors = {}
    for name, tensor in state.items():
        own, _, kind = name.rpartition(".")
        tensors[f"{names.get(own, own)}.{kind}"] = tensor
    for convolution, norm in convolutions.items():
        bias, mean = tensors.pop(f"{convolution}.bias", None), tensors.get(f"{norm}.running_mean")
        if bias is None or mean is None or bias.shape != mean.shape or not _sound(bias, mean):
            raise CheckpointError(f"{where} is no whole VGG-16 of PwoA: {convolution} has no bias or no batch norm")
        tensors[f"{norm}.running_mean"] = mean - bias
    note = "renamed: layer1.0.0 to layer8 as features.0 to classifier.4; biases of convolutions are in the batch norms"
    return Plain(tensors, pruner="pwoa", notes=(note,))
