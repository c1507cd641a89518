"""What the factory of a network may be given: images that are large enough, settings that a machine can hold."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from hydraprune.core.errors import SpecError
from hydraprune.core.spec import nearest, sentence

LARGEST = 2**16
"""What the numbers among the options of a network may add up to: no width, depth or list of depths is larger."""
# What libraries read files or the network for, what they are told anyway, and where they would allocate.
_NOT_FOR_LIBRARIES = {
    *("model_name", "checkpoint_path", "cache_dir", "device", "dtype", "pruned"),
    *("name", "weights", "weights_backbone"),
}


def require_side(net: str, image_size: int, least: int) -> None:
    """Refuse square images whose side is below `least`, the product of the network's strides.

    Raises:
        SpecError: naming the size and the smallest that works.
    """
    if image_size < least:
        raise SpecError(
            f"{net} cannot take {image_size}x{image_size} images; it needs at least {least}x{least}: "
            "enlarge the images or choose a net with fewer strides, such as cnn_digits"
        )


def bounded(kind: str, options: Mapping[str, Any]) -> None:
    """See that no number among the options makes a network explode.

    Raises:
        SpecError: if they add up to more than `LARGEST`.
    """
    total = _size(options)
    if not total <= LARGEST:  # not a number, either
        raise SpecError(f"net {kind!r}: its options hold numbers up to {total:.3g} in all; give at most {LARGEST}")


def _size(value: Any) -> float:
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    if isinstance(value, list | tuple):
        return sum(1 + _size(part) for part in value)
    if isinstance(value, int | float):
        return abs(value) if abs(value) < 1e300 else float("inf")
    return len(value) if isinstance(value, str) else 0


def without_files(kind: str, options: Mapping[str, Any]) -> None:
    """See that no option of a library's network makes it read files, or fetch them.

    Raises:
        SpecError: naming the option.
    """
    for option in options:
        if option in _NOT_FOR_LIBRARIES or option.startswith("pretrained"):
            raise SpecError(
                f"net {kind!r} does not take the option {option!r}; to start from weights that you have, "
                "give their file as `weights:`"
            )


def typed(kind: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as `factory` annotates them; what it does not annotate stays as it is.

    Raises:
        SpecError: for an option that it lacks, or of another type.
    """
    try:
        signature = inspect.signature(factory, eval_str=True)
    except NameError:  # an annotation that only type checkers can read
        signature = inspect.signature(factory)
    parameters = signature.parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    values = {}
    for option, value in options.items():
        if option not in parameters and not takes_any:
            raise SpecError(f"net {kind!r} has no option {option!r}; {nearest(option, parameters)}")
        wanted = parameters[option].annotation if option in parameters else inspect.Parameter.empty
        try:
            values[option] = (
                value if wanted in (inspect.Parameter.empty, Any) else TypeAdapter(wanted).validate_python(value)
            )
        except ValidationError as error:
            raise SpecError(sentence(error, f"net {kind!r}: options.{option}")) from None
        except (PydanticUserError, NameError):  # a class that pydantic has never heard of
            values[option] = value
    return values
