"""The modules a bundle may hold, one row each: quantizers, neurons, the input's grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spikezip.errors import BundleError
from spikezip.export.values import fields
from spikezip.levels import Levels
from spikezip.quantize.grid import FixedPoint, InputGrid
from spikezip.quantize.quantizer import Quantizer
from spikezip.spike.neuron import STBIF

_MOST = 1 << 24  #: greatest code: float32 holds every whole number up to it


@dataclass(frozen=True)
class Leaf:
    """One kind of module.

    Attributes:
        kind: its class.
        facts: the whole numbers that describe it, each with the least and greatest it may be.
        write: these numbers of a module.
        read: a module of these numbers; its tensors are filled in afterwards.
        positive: those of its tensors that must be positive.
        defaults: of numbers that are left out where they are so.
        codes: a tensor of codes that it may have, of any shape.
    """

    kind: type[nn.Module]
    facts: Mapping[str, tuple[int, int]]
    write: Callable[[Any], dict[str, int]]
    read: Callable[..., nn.Module]
    positive: tuple[str, ...] = ()
    defaults: Mapping[str, int] = field(default_factory=dict)
    codes: str = ""


_LEVELS = {"lowest": (-_MOST, 0), "highest": (0, _MOST)}

LEAVES: dict[str, Leaf] = {
    "Quantizer": Leaf(
        Quantizer,
        _LEVELS,
        lambda m: {"lowest": m.levels.lowest, "highest": m.levels.highest},
        lambda lowest, highest: Quantizer(Levels(lowest, highest)),
        positive=("scale",),
    ),
    "STBIF": Leaf(
        STBIF,
        {**_LEVELS, "slew": (1, (1 << 31) - 1), "initial": (-_MOST, _MOST)},
        lambda m: {"lowest": m.levels.lowest, "highest": m.levels.highest, "slew": m.slew, "initial": m.initial_code},
        lambda lowest, highest, slew, initial: STBIF(Levels(lowest, highest), torch.tensor(1.0), slew, initial),
        positive=("threshold",),
        defaults={"initial": 0},
        codes="initial_codes",
    ),
    "InputGrid": Leaf(
        InputGrid,
        {"exponent": (-1000, 1000), "limit": (1, _MOST)},
        lambda m: {"exponent": m.exponent, "limit": m.limit},
        InputGrid,
    ),
    "FixedPoint": Leaf(
        FixedPoint,
        {"exponent": (-1000, 1000), "limit": (1, 1 << 52)},
        lambda m: {"exponent": m.exponent, "limit": m.limit},
        FixedPoint,
    ),
}


def write_leaf(module: nn.Module, name: str) -> dict[str, Any]:
    """A module as JSON data."""
    for kind, leaf in LEAVES.items():
        if type(module) is leaf.kind:
            facts = leaf.write(module)
            return {"kind": kind, **{k: v for k, v in facts.items() if k not in leaf.defaults or v != leaf.defaults[k]}}
    raise BundleError(f"the module {name!r} is a {type(module).__name__}, which a bundle cannot hold")


def read_leaf(row: Any, name: str, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The inverse of :func:`write_leaf`, with the module's tensors, each under the name it has inside the module."""
    kind = row.get("kind") if isinstance(row, dict) else None
    if not isinstance(kind, str) or kind not in LEAVES:
        raise BundleError(
            f"the module {name!r} is of kind {str(kind)[:80]!r}, which is not known. "
            "If a newer spikezip wrote it, upgrade"
        )
    leaf = LEAVES[kind]
    wanted = {fact: int for fact in leaf.facts if fact not in leaf.defaults}
    fields(row, f"the module {name!r}", {"kind": str, **wanted}, dict.fromkeys(leaf.defaults, int))
    row = {**leaf.defaults, **row}
    for fact, (least, most) in leaf.facts.items():
        if not least <= row[fact] <= most:
            raise BundleError(f"the module {name!r} has {fact} {row[fact]}; it must lie in {least}..{most}")
    if "lowest" in leaf.facts and row["lowest"] == row["highest"]:
        raise BundleError(f"the levels of {name!r} are 0..0: nothing is left to represent")
    if "initial" in leaf.facts and not row["lowest"] <= row["initial"] <= row["highest"]:
        raise BundleError(f"the tracers of {name!r} start at {row['initial']}, which is none of their codes")
    module = leaf.read(**{fact: row[fact] for fact in leaf.facts})
    if leaf.codes in tensors:
        _check_codes(f"{name}.{leaf.codes}", tensors[leaf.codes], module.levels)  # type: ignore[arg-type]
        module.register_buffer(leaf.codes, tensors[leaf.codes])
    _fill(module, leaf, name, tensors)
    return module


def _check_codes(name: str, codes: Tensor, levels: Levels) -> None:
    if isinstance(codes, nn.Parameter) or codes.dtype != levels.storage or not codes.numel():
        raise BundleError(f"the tensor {name} is {codes.dtype} of shape {tuple(codes.shape)}, which holds no codes")
    if int(codes.min()) < levels.lowest or int(codes.max()) > levels.highest:
        raise BundleError(f"the tensor {name} holds {int(codes.min())}..{int(codes.max())}, not codes of {levels}")


def _fill(module: nn.Module, leaf: Leaf, name: str, tensors: Mapping[str, Tensor]) -> None:
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    if own.keys() != tensors.keys():
        wrong = sorted(own.keys() ^ tensors.keys())[0]
        raise BundleError(f"the tensor {name}.{wrong} is missing, or does not belong to its {type(module).__name__}")
    for key, fresh in own.items():
        tensor = tensors[key]
        alike = tensor.dtype == fresh.dtype or (tensor.is_floating_point() and fresh.is_floating_point())
        if tensor.shape != fresh.shape or not alike:
            raise BundleError(
                f"the tensor {name}.{key} is {tensor.dtype} of shape {tuple(tensor.shape)}; "
                f"a {type(module).__name__} needs {fresh.dtype} of shape {tuple(fresh.shape)}"
            )
        if isinstance(fresh, nn.Parameter) != isinstance(tensor, nn.Parameter):
            raise BundleError(f"the tensor {name}.{key} is a parameter where a buffer belongs, or the reverse")
        if key in leaf.positive and not 0 < float(tensor.detach()) < math.inf:
            raise BundleError(f"{name}.{key} is {float(tensor.detach())}; a threshold must be positive and finite")
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(key, tensor)
        else:
            module.register_buffer(key, tensor)
