"""Bounds of networks of affine maps and ReLUs, written out slowly: forwards with every symbol, backwards row by row."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

Affine = tuple[np.ndarray, np.ndarray]
Ends = tuple[np.ndarray, np.ndarray]


def affine_parts(net: nn.Sequential, x: Tensor) -> list[Affine]:
    """Matrix and constant of what lies before, between and behind the ReLUs, on flattened layers."""
    parts: list[Affine] = []
    layers: list[nn.Module] = []
    here = x[:1].detach()
    for layer in [*net, None]:
        if layer is not None and not isinstance(layer, nn.ReLU):
            layers.append(layer)
            continue
        block, shape = nn.Sequential(*layers), here.shape
        after = block(here).detach()
        matrix = torch.autograd.functional.jacobian(lambda flat: block(flat.view(shape)).flatten(), here.flatten())  # noqa: B023
        constant = block(torch.zeros_like(here)).flatten()
        parts.append((matrix.numpy(), constant.detach().numpy()))
        here, layers = after.relu(), []
    return parts


def zonotope(parts: list[Affine], lower: np.ndarray, upper: np.ndarray, spec: np.ndarray) -> np.ndarray:
    """Lower bounds of `spec @ logits`: each neuron as a function of a symbol per pixel and one per unstable ReLU."""
    center, symbols = (lower + upper) / 2, np.diag((upper - lower) / 2)  # symbols: (neurons, symbols)
    for number, (matrix, constant) in enumerate(parts):
        center, symbols = matrix @ center + constant, matrix @ symbols
        if number == len(parts) - 1:
            return spec @ center - np.abs(spec @ symbols).sum(1)
        radius = np.abs(symbols).sum(1)
        for i, (least, most) in enumerate(zip(center - radius, center + radius, strict=True)):
            if most <= 0:
                center[i], symbols[i] = 0, 0
            elif least < 0:
                slope = most / (most - least)
                height = -slope * least / 2
                center[i], symbols[i] = slope * center[i] + height, slope * symbols[i]
                fresh = np.zeros((len(center), 1))
                fresh[i] = height
                symbols = np.hstack([symbols, fresh])
    raise AssertionError("no logits")


def intervals(parts: list[Affine], lower: np.ndarray, upper: np.ndarray) -> list[Ends]:
    """What enters each ReLU, by interval arithmetic."""
    boxes = []
    for matrix, constant in parts[:-1]:
        center, radius = matrix @ (lower + upper) / 2 + constant, np.abs(matrix) @ (upper - lower) / 2
        boxes.append((center - radius, center + radius))
        lower, upper = (end.clip(0) for end in boxes[-1])
    return boxes


def crown_boxes(parts: list[Affine], lower: np.ndarray, upper: np.ndarray) -> list[Ends]:
    """What enters each ReLU, by a way back for each neuron through the boxes found before."""
    boxes: list[Ends] = []
    for depth in range(1, len(parts)):
        units = np.eye(len(parts[depth - 1][1]))
        least = crown(parts[:depth], lower, upper, units, boxes)
        boxes.append((least, -crown(parts[:depth], lower, upper, -units, boxes)))
    return boxes


def crown(parts: list[Affine], lower: np.ndarray, upper: np.ndarray, spec: np.ndarray, boxes: list[Ends]) -> np.ndarray:
    """Lower bounds of `spec @ outputs` by the way back, with adaptive slopes between lines over these boxes."""
    found = []
    for row in spec:
        total = 0.0
        for depth, (matrix, constant) in reversed(list(enumerate(parts))):
            total += row @ constant
            row = row @ matrix
            if depth == 0:
                break
            for i, (least, most) in enumerate(zip(*boxes[depth - 1], strict=True)):
                if most <= 0:
                    row[i] = 0
                elif least < 0:
                    slope = most / (most - least)
                    if row[i] < 0:
                        total += row[i] * -slope * least
                        row[i] *= slope
                    else:
                        row[i] *= float(most > -least)
        total += np.where(row > 0, row * lower, row * upper).sum()
        found.append(total)
    return np.array(found)
