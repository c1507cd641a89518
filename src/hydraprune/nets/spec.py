"""The network of a recipe: a built-in, one of timm or torchvision, or any factory that can be imported."""

from __future__ import annotations

import difflib
import inspect
import re
from collections import OrderedDict
from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from hydraprune.core.errors import HydrapruneError, SpecError
from hydraprune.core.extras import extra
from hydraprune.core.spec import Number, Spec, nearest, whole
from hydraprune.nets.built_in import NETS, WIDE, built_in
from hydraprune.nets.foreign import load_weights
from hydraprune.nets.init import fast_certified_init
from hydraprune.nets.normalize import NamedNormalization, Normalize
from hydraprune.nets.options import bounded, typed, without_files

LIBRARIES = ("timm:", "torchvision:")
"""Packages whose networks are made by name, without their weights: they need no more trust than this one."""


class Net(Spec):
    """Which network, and how it starts.

    Args:
        kind: a built-in name, among them `wrn_DEPTH_WIDTH`, `timm:NAME`, `torchvision:NAME` (for classification), or
            `package.module:factory`.
        options: keyword arguments for the factory, of the types that it annotates; but for the last kind numbers among
            them add up to 65,536 at most.
        normalize: per-channel constants, or the name of standard ones; None feeds pixels in [0, 1] as they are.
        init: how the weights start: `fast-certified` for certified training (see `fast_certified_init`); None leaves
            that to the factory.
        weights: checkpoint to start from; see `load_weights` for what it may hold. None starts at random.
        keep: share of each layer that `weights` of the HYDRA authors keep, their `k`; 1 takes such weights dense. Such
            files do not say it; None is for all others.

    Sample yaml: `net: {kind: timm:resnet50, normalize: imagenet, weights: resnet50.safetensors}`
    """

    kind: str
    options: dict[str, Any] = Field(default={})
    normalize: NamedNormalization | None = None
    init: Literal["fast-certified"] | None = None
    weights: str | None = None
    keep: Number | None = Field(default=None, gt=0, le=1)

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if built_in(kind) is None and not re.fullmatch(r"[^\W\d][\w.]*:\S+", kind):
            others = "timm:NAME, torchvision:NAME or package.module:factory"
            raise ValueError(f"unknown net {kind!r}; {nearest(kind, NETS)} (or {others})")
        return kind

    @property
    def calls(self) -> str | None:
        """What `build` imports and calls from outside of the package and `LIBRARIES`, in words; None if nothing."""
        if built_in(self.kind) is not None or self.kind.startswith(LIBRARIES):
            return None
        return f"{self.kind} with options {self.options}"

    def build(self, num_classes: int, in_channels: int = 3, image_size: int = 32) -> nn.Module:
        """The network for square images of side `image_size`, on the CPU, in training mode.

        A factory is told the three arguments as far as its signature names them. With normalisation the result is a
        `nn.Sequential` of `normalize` and `net`; without, it is the bare network.

        Raises:
            SpecError: if the network cannot be made; the message names the kind and the remedy.
            CheckpointError: if `weights` do not fit it.
        """
        sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
        num_classes, in_channels, image_size = (whole(size, name, 1) for name, size in sizes.items())
        try:
            if self.kind.startswith("timm:"):
                factory, values = self._timm(num_classes, in_channels)
            elif self.kind.startswith("torchvision:"):
                factory, values = self._torchvision(num_classes, in_channels)
            else:
                factory, values = self._imported(num_classes, in_channels, image_size)
            net = factory(**values)
        except HydrapruneError:
            raise
        except (Exception, SystemExit) as error:  # a factory may fail in any way it likes
            why = f"{type(error).__name__}: {error}".partition("\n")[0]  # torch appends a trace of its own
            raise SpecError(f"net {self.kind!r} cannot be made with options {self.options}: {why}") from error
        if not isinstance(net, nn.Module):
            raise SpecError(f"net {self.kind!r} gave a {type(net).__name__}; the factory must return an nn.Module")
        if self.init is not None:
            fast_certified_init(net)
        if self.normalize is not None:
            mean, std = self.normalize.mean, self.normalize.std
            if len(mean) != in_channels:
                raise SpecError(f"normalize has {len(mean)} means, the images {in_channels} channels; give one each")
            net = nn.Sequential(OrderedDict(normalize=Normalize(mean, std), net=net))
        if self.weights is not None:
            load_weights(net, self.weights, self.keep)
        return net

    def sketch(self, num_classes: int, in_channels: int, image_size: int, *, parts: int) -> nn.Module:
        """The same network without memory, on the meta device: names and shapes, whatever the settings claim.

        Args:
            parts: of how many modules and parameters it may consist.

        Raises:
            SpecError: as `build`, and if it has more parts.
        """
        left = parts

        def count(*_: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise SpecError(f"net {self.kind!r} has more than {parts} parts with options {self.options}")

        hooks = register_module_module_registration_hook(count), register_module_parameter_registration_hook(count)
        try:
            with torch.device("meta"):
                return self.build(num_classes, in_channels, image_size)
        finally:
            for hook in hooks:
                hook.remove()

    def _timm(self, num_classes: int, in_channels: int) -> tuple[Callable[..., Any], dict[str, Any]]:
        with extra("timm", f"net {self.kind!r}"):
            import timm

        name = self.kind.removeprefix("timm:")
        if ":" in name or "/" in name:
            raise SpecError(
                f"net {self.kind!r}: timm would read {name!r} from elsewhere; give the name of a model, "
                "and the file of its weights as `weights:`"
            )
        if not timm.is_model(name):
            closest = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0)[0]
            raise SpecError(f"timm has no model {name!r}; did you mean 'timm:{closest}'?")
        without_files(self.kind, self.options)
        bounded(self.kind, self.options)
        values = {"model_name": name, "pretrained": False, "num_classes": num_classes, "in_chans": in_channels}
        return timm.create_model, values | self.options

    def _torchvision(self, num_classes: int, in_channels: int) -> tuple[Callable[..., Any], dict[str, Any]]:
        with extra("images", f"net {self.kind!r}"):
            from torchvision import models

        name, known = self.kind.removeprefix("torchvision:"), models.list_models(module=models)
        if name not in known:
            raise SpecError(f"torchvision has no network {name!r} that classifies; {nearest(name, known)}")
        if in_channels != 3:
            raise SpecError(f"net {self.kind!r} takes images of 3 channels, not {in_channels}; choose one of timm's")
        without_files(self.kind, self.options)
        bounded(self.kind, self.options)
        return models.get_model, {"name": name, "weights": None, "num_classes": num_classes} | self.options

    def _imported(
        self, num_classes: int, in_channels: int, image_size: int
    ) -> tuple[Callable[..., Any], dict[str, Any]]:
        path, _, attribute = (built_in(self.kind) or self.kind).partition(":")
        try:
            module = import_module(path)
        except ImportError as error:
            raise SpecError(
                f"net {self.kind!r}: {error}; install the package or correct its name, and start with `PYTHONPATH=.` "
                "if it lies in the working directory"
            ) from error
        factory = getattr(module, attribute, None)
        if not callable(factory):
            raise SpecError(f"net {self.kind!r}: {path} has no function or class {attribute!r}; correct the name")
        if built_in(self.kind) is not None:
            bounded(self.kind, self.options)
        options = typed(self.kind, factory, self.options)
        if wide := WIDE.fullmatch(self.kind):
            options |= {"depth": int(wide[1]), "widen": int(wide[2])}
        parameters = inspect.signature(factory).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        offers = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
        told = [name for name in offers if name in parameters or (takes_any and name == "num_classes")]
        return factory, {name: offers[name] for name in told} | options
