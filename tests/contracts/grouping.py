"""The groups of every structure as explicit lists, which the batteries compare with what the structures do."""

from torch import nn

from hydraprune.masks.structures import Structure


def sides(module: nn.Module) -> list[tuple[int, int, int, int]]:
    """(convolution group, output channel in it, input channel in it, kernel position) of every stored weight."""
    weight, groups = module.weight, getattr(module, "groups", 1)
    transposed = getattr(module, "transposed", False)
    found = []
    for first in range(weight.shape[0]):
        for second in range(weight.shape[1]):
            group, own = divmod(first, weight.shape[0] // groups)
            ends = (second, own) if transposed else (own, second)
            found += [(group, *ends, position) for position in range(weight[0, 0].numel())]
    return found


def key(structure: Structure, side: tuple[int, int, int, int]) -> tuple[int, ...]:
    """What the weights of one group share; a new structure needs a line."""
    group, output, inputs, position = side
    match structure.kind:
        case "weight":
            return side
        case "filter":
            return group, output
        case "channel":
            return group, inputs
        case "block":
            return group, output // structure.rows, inputs // structure.columns, position
        case "n:m":
            return group, output, inputs // structure.m, position
    raise NotImplementedError(f"say in tests/contracts/grouping.py what the groups of {structure.kind!r} are")


def members(structure: Structure, module: nn.Module) -> list[list[int]]:
    """Places of the weights of every group in the flattened weight of `module`; for n:m, of every `m` neighbours."""
    found: dict[tuple[int, ...], list[int]] = {}
    for place, side in enumerate(sides(module)):
        found.setdefault(key(structure, side), []).append(place)
    return list(found.values())
