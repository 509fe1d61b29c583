"""LSQ as published, to compare with."""

from __future__ import annotations

import math


def published(
    grad: list[float], drive: list[float], s: float, low: int, high: int, features: int
) -> tuple[list[float], float]:
    """LSQ as published (eq. 1-5), value by value in plain Python; ties up."""
    to_drive, to_scale = [], 0.0
    for g, v in zip(grad, drive, strict=True):
        ratio = v / s
        if ratio <= low:
            slope, passes = float(low), 0.0
        elif ratio >= high:
            slope, passes = float(high), 0.0
        else:
            slope, passes = -ratio + math.floor(ratio + 0.5), 1.0
        to_drive.append(g * passes)
        to_scale += g * slope
    return to_drive, to_scale / math.sqrt(features * max(high, -low))
