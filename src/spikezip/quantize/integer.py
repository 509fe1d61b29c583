"""QANN -> integer QANN: codes on the wires, integer weights, every sum exact.

Thresholds are divided out: wires carry whole codes, each layer's weights absorb ``theta_in / theta_out``, and each
output channel's weights are whole multiples of a power of two. The graph stays the same, so every engine runs it as it
is; and as each value is a short dyadic number, QANN, reference, sweep and event form agree to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from spikezip.errors import StageError
from spikezip.graph import network, ops, rewrite, shapes
from spikezip.graph.modes import building
from spikezip.graph.network import Stage
from spikezip.morph.fold import refuse_live
from spikezip.quantize.averages import spell_averages
from spikezip.quantize.calibrate import LIMIT, gather
from spikezip.quantize.exact import Exactness, choose_arithmetic
from spikezip.quantize.feedback import feed_back
from spikezip.quantize.grid import FLOAT32_BITS, InputGrid
from spikezip.quantize.quantizer import Quantizer, check_scales
from spikezip.quantize.refit import distance, spread
from spikezip.quantize.units import Rounded, Units

_DETAIL_BITS = 6  #: with sign, of how much the channel of the input varies that varies least
_CHUNKS, _ASKED = 4, 16  #: of calibration data, and images of each, on which answers are compared
_ANY = 0.7  #: stands for a threshold; no value in units of it is in unit 1

__all__ = ["Exactness", "to_integer"]


@building()
def to_integer(
    qann: fx.GraphModule,
    weight_bits: int = 8,
    *,
    input_bits: int = 11,
    calibration: Tensor | Iterable[Any] | None = None,
) -> fx.GraphModule:
    """Turn a QANN into one whose synaptic sums are sums of integer products.

    Args:
        qann: a calibrated QANN.
        weight_bits: bits of the weights, 2 to 16; each output channel has its own power-of-two scale.
        input_bits: bits (with sign) of the network's fixed-point input; more, up to 24, where a channel or column
            varies by so little of the greatest value that they would not tell its values apart.
        calibration: as for ``quantize``, if weights are to be rounded so that they make up for one another on it
            (:func:`~spikezip.quantize.feedback.feed_back`; with 5 bits and fewer far better), unless each at its
            nearest step leaves the answers nearer to the QANN's there. None rounds each to its nearest step.

    Returns:
        A new QANN. Its notes hold ``weight_bits``, ``exactness`` (a tuple of :class:`Exactness`) and ``thresholds``
        (pairs of layer and the threshold divided out of it); all its thresholds are 1. It answers nearly as ``qann``
        does (weights are rounded): measure its accuracy.

    Raises:
        StageError: not a QANN, already integer, a scale that is not set or not positive, or bits out of range.
        CalibrationError: the calibration data is empty or unusable.

    Source: the integer bound is derived in docs/floating-point.md; integer inference as in Jacob et al., CVPR 2018.
    Departs: powers of two instead of a fixed-point multiplier, so that no sum is ever rounded.
    """
    network.expect(qann, Stage.QANN, "to_integer")
    if network.note(qann, "weight_bits"):
        raise StageError("This network is an integer network already.")
    if not all(isinstance(bits, int) and 2 <= bits <= 16 for bits in (weight_bits, input_bits)):
        raise StageError(
            f"weight_bits={weight_bits}, input_bits={input_bits}: each is a whole number in 2..16; 8 and 11 are usual."
        )
    refuse_live(qann, "to_integer")
    check_scales(qann)
    new = network.fork(qann).eval().requires_grad_(False)
    thresholds = tuple((str(n.target), float(q.scale.detach())) for n, q in network.modules_of(new, Quantizer))
    _round_inputs(new, input_bits)
    spell_averages(new)
    units = Units(new, weight_bits, keep=calibration is not None)
    known = units.run()
    rewrite.tidy(new)
    shapes.annotate(new, anew=False)
    if calibration is not None:
        _round_in_order(new, units.rounded, qann, gather(qann, calibration, LIMIT))
    exactness = choose_arithmetic(new, _reaches(new, known))
    network.remark(new, weight_bits=weight_bits, exactness=exactness, thresholds=thresholds, ranges={})
    return new


@torch.no_grad()
def _round_in_order(
    new: fx.GraphModule, rounded: Mapping[fx.Node, Rounded], qann: fx.GraphModule, data: list[tuple[Tensor, ...]]
) -> None:
    """Round weights so that they make up for one another, in place, if the answers are then nearer to the QANN's."""
    asked = [tuple(x[:_ASKED] for x in chunk) for chunk in spread(data, _CHUNKS)]
    indices = [(node, ops.bias_index(node)) for node in rounded]
    stored = [network.constant(ops.weight_of(node)) for node in rounded]
    stored += [network.constant(node.args[index]) for node, index in indices if index is not None]
    nearest = [(tensor, tensor.clone()) for tensor in stored if tensor is not None]
    before = distance(qann, new, asked)
    feed_back(new, rounded, data)
    if not distance(qann, new, asked) < before:
        for tensor, values in nearest:
            tensor.copy_(values)


def check_integer(qann: fx.GraphModule, weight_bits: int = 8) -> None:
    """Raise what :func:`to_integer` refuses whatever the thresholds are, so of a QANN that need not be calibrated.

    Weights that would all become 0 are not found: that depends on the thresholds.
    """
    trial = network.fork(qann).eval().requires_grad_(False)
    for _, quantizer in network.modules_of(trial, Quantizer):
        quantizer.scale.data.fill_(_ANY)
    spell_averages(trial)
    Units(trial, weight_bits, calibrated=False).run()


def divided_out(gm: fx.GraphModule) -> dict[str, float]:
    """What one level of each layer of an integer network is worth in the network it was made from, by name; of others
    nothing is told, as their thresholds say it."""
    return dict(network.note(gm, "thresholds", ()))


def _reaches(gm: fx.GraphModule, units: dict[fx.Node, float]) -> dict[fx.Node, float]:
    """How far values went on the calibration data, each in its unit."""
    known = network.note(gm, "ranges") or {}
    found = {}

    def reach(node: Any) -> float | None:
        name, times = node.meta.get("averages", (node.name, 1)) if isinstance(node, fx.Node) else ("", 1)
        return known[name] * times if name in known else None

    for node in gm.graph.nodes:
        far = reach(node)
        if far is None and network.op_name(node) == "mul":  # made for another unit
            far = reach(node.args[0])
        if node in units and far is not None:
            found[node] = far / units[node]
    return found


def _round_inputs(gm: fx.GraphModule, input_bits: int) -> None:
    placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    ranges = network.note(gm, "input_range") or [1.0] * len(placeholders)
    details = network.note(gm, "input_detail") or [None] * len(placeholders)
    for node, top, detail in zip(placeholders, ranges, details, strict=True):
        if not network.spec(node).dtype.is_floating_point:
            continue
        needed = math.ceil(math.log2(top / detail)) + _DETAIL_BITS if detail else 0
        limit = 2 ** (min(max(input_bits, needed), FLOAT32_BITS) - 1)
        exponent = math.floor(math.log2(limit / top)) if top > 0 else 0
        name = rewrite.free_name(gm, f"{node.name}_grid")
        gm.add_submodule(name, InputGrid(exponent, limit))
        with gm.graph.inserting_after(node):
            rounded = gm.graph.call_module(name, (node,))
        rounded.meta = {"origin": name, "spec": node.meta["spec"]}
        node.replace_all_uses_with(rounded, delete_user_cb=lambda user, own=rounded: user is not own)
