"""ANN -> QANN: a quantizer wherever the SNN needs a neuron."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from spikezip.errors import StageError, UnknownNameError
from spikezip.graph import network, ops, rewrite, shapes
from spikezip.graph.modes import building
from spikezip.graph.network import Stage
from spikezip.graph.ops import Kind
from spikezip.levels import Levels
from spikezip.quantize.calibrate import LIMIT, calibrate, gather
from spikezip.quantize.place import Carriers, needs_neuron, never_negative
from spikezip.quantize.quantizer import Quantizer
from spikezip.quantize.refit import distance


@building()
def quantize(
    ann: fx.GraphModule,
    levels: int | Levels = 8,
    calibration: Tensor | Iterable[Any] | None = None,
    *,
    signed_levels: int | Levels | None = None,
    layer_levels: Mapping[str, int | Levels] | None = None,
    strict: bool = True,
    refit: bool | None = False,
    original: fx.GraphModule | None = None,
) -> fx.GraphModule:
    """Insert quantizers and set their scales from data.

    Every ReLU becomes an unsigned quantizer (which contains it); every other activation is followed by one (but for a
    divisor, and for a clamp that only general functions read); with ``strict``, so is every analog value that a
    convolution, linear layer or matrix product would otherwise receive (except the network's input). Scales minimise
    the mean squared error on the calibration data, layer by layer.

    Args:
        ann: a morphed ANN.
        levels: how many levels: ``8`` is 0..7 behind ReLU and -4..3 where values may be negative; or exact
            :class:`Levels`, whose negative codes are left out behind ReLU.
        calibration: a few hundred inputs ``[N, ...]``, or an iterable of batches or ``(images, labels)`` pairs. None
            leaves the scales at 1, uncalibrated.
        signed_levels: levels where values may be negative, if they are to differ.
        layer_levels: levels of single layers, by the name of their quantizer (``repr(qann)`` and
            :func:`~spikezip.measure.compare` show them), such as ``{"layer1.0.relu1": 16}``.
        strict: every synaptic operation receives spikes.
        refit: fit each layer's weights, on quantized inputs, to what the layer gives in the ANN on the calibration data
            (:class:`~spikezip.quantize.refit.Refit`); None does so if the outputs are then nearer to the ANN's there.
        original: what ``morph`` was given, if weights are to be fitted to that network, and so make up for a morph that
            changes the function too.

    Returns:
        The QANN: a new, trainable ``GraphModule``; its quantizers are named after the places they sit in.

    Raises:
        StageError: ``ann`` is not an ANN, or the levels are not admissible.
        UnknownNameError: ``layer_levels`` names no quantizer.
        CalibrationError: the calibration data is empty or unusable.
    """
    network.expect(ann, Stage.ANN, "quantize")
    if not isinstance(refit, bool | None):
        raise StageError(f"refit={refit!r}: give True, False, or None to find out which is better.")
    if original is not None:
        network.expect(original, Stage.ANN, "quantize")
        if not {n.meta["was"] for n in ann.graph.nodes if "was" in n.meta} <= {n.name for n in original.graph.nodes}:
            raise StageError("original is not the network that morph was given to make this one; give that, or none.")
    if refit is None and calibration is not None:
        data = gather(ann, calibration, LIMIT)
        same = {"signed_levels": signed_levels, "layer_levels": layer_levels, "strict": strict, "original": original}
        plain = quantize(ann, levels, **same)
        both = [plain, network.fork(plain)]
        for qann, fitted_to in zip(both, (None, original or ann), strict=True):
            calibrate(qann, data, ann=fitted_to)
        return min(both, key=lambda qann: distance(original or ann, qann, data))
    qann = network.fork(ann)
    if original is None:
        network.stamp(qann)
    unsigned, signed = _both_levels(levels, signed_levels)
    insert_quantizers(qann, unsigned, signed, strict=strict)
    _set_single(qann, layer_levels or {})
    network.remark(qann, stage=Stage.QANN, strict=strict)
    if calibration is not None:
        calibrate(qann, calibration, ann=(original or ann) if refit else None)
    return qann


def _both_levels(levels: int | Levels, signed_levels: int | Levels | None) -> tuple[Levels, Levels]:
    for given in (levels, signed_levels):
        if given is None and levels is not None:
            continue
        _check(given)
    if isinstance(levels, Levels):
        # Behind a ReLU a negative code would be a value that the ReLU never gives.
        unsigned = Levels(0, max(1, levels.highest)) if levels.lowest < 0 else levels
    else:
        unsigned = Levels.unsigned(levels)
    if signed_levels is None:
        signed_levels = levels if isinstance(levels, Levels) and levels.lowest < 0 else unsigned.count
    signed = signed_levels if isinstance(signed_levels, Levels) else Levels.signed(signed_levels)
    return unsigned, signed


def _check(given: Any) -> None:
    if isinstance(given, bool) or not isinstance(given, int | Levels):
        more = "; for single layers there is layer_levels={name: levels}" if isinstance(given, Mapping) else ""
        raise StageError(f"levels is a {type(given).__name__}; give a number such as 8, or Levels(0, 7){more}.")
    if isinstance(given, int) and given < 2:
        raise StageError(f"levels={given} leaves nothing to represent; give at least 2 (codes 0 and 1).")


def _set_single(gm: fx.GraphModule, layer_levels: Mapping[str, int | Levels]) -> None:
    if not isinstance(layer_levels, Mapping):
        raise StageError(
            f"layer_levels is a {type(layer_levels).__name__}; give levels by name, {{'layer1.relu': 16}}."
        )
    quantizers = {str(node.target): quantizer for node, quantizer in network.modules_of(gm, Quantizer)}
    for name, given in layer_levels.items():
        if name not in quantizers:
            raise UnknownNameError("quantizer", str(name), quantizers)
        _check(given)
        signed = quantizers[name].levels.lowest < 0
        if isinstance(given, int):
            given = Levels.signed(given) if signed else Levels.unsigned(given)
        if given.lowest < 0 and not signed:
            raise StageError(
                f"layer_levels gives {name!r} the negative codes of {given}, and it stands where no value is negative, "
                f"as behind a ReLU. Give it Levels(0, {max(1, given.highest)})."
            )
        quantizers[name].levels = given


def insert_quantizers(gm: fx.GraphModule, unsigned: Levels, signed: Levels, *, strict: bool = True) -> None:
    """Put quantizers into a graph, in place (see :func:`quantize`)."""
    returned = set(network.outputs(gm))
    for node in list(gm.graph.nodes):
        if "spec" not in node.meta or ops.is_constant(node):
            continue
        kind = ops.kind(node) if node.op == "call_function" else None
        if kind is Kind.RECTIFIER and node not in returned:
            _insert(gm, node.args[0], list(node.users), unsigned, name=network.origin(node), place=node)
            gm.graph.erase_node(node)
        elif node.meta.get("neuron") == "signed" or (
            kind is Kind.ACTIVATION
            and node not in returned
            and not ops.only_divides(node)
            and not ops.limits_functions(node)
        ):
            levels = unsigned if never_negative(node) else signed
            _insert(gm, node, list(node.users), levels, name=network.origin(node))
    if strict:
        _insert_missing(gm, unsigned, signed)
    rewrite.tidy(gm)
    shapes.annotate(gm, anew=False)


def _insert_missing(gm: fx.GraphModule, unsigned: Levels, signed: Levels) -> None:
    carriers = Carriers(gm, Quantizer)
    made: dict[fx.Node, fx.Node] = {}
    while missing := needs_neuron(gm, carriers):
        source, reader = missing[0]
        if source not in made:
            levels = unsigned if never_negative(source) else signed
            made[source] = _insert(gm, source, [reader], levels, name=network.origin(source))
        else:
            reader.replace_input_with(source, made[source])
        carriers.forget()


def _insert(
    gm: fx.GraphModule, source: Any, readers: list[fx.Node], levels: Levels, *, name: str, place: fx.Node | None = None
) -> fx.Node:
    dtype = source.meta["spec"].dtype
    if dtype.is_complex:
        raise StageError(
            f"{network.describe(source)} holds complex numbers that weights multiply, so it would need a neuron; but "
            "spikes add up to real numbers. Write that product with real and imaginary parts."
        )
    name = _module_name(gm, name)
    quantizer = Quantizer(levels).to(network.device(gm), dtype)
    quantizer.batch_dim = source.meta["spec"].batch_dim or 0
    gm.add_submodule(name, quantizer)
    with gm.graph.inserting_after(place or source):
        node = gm.graph.call_module(name, (source,))
    node.meta = {"origin": name, "stands_for": (place or source).name}
    if "was" in (place or source).meta:
        node.meta["was"] = (place or source).meta["was"]
    if "spec" in source.meta:
        node.meta["spec"] = source.meta["spec"]
    for reader in readers:
        reader.replace_input_with(place or source, node)
    return node


def _module_name(gm: fx.GraphModule, origin: str) -> str:
    """The author's name; ``origin.neuron`` where that name already holds weights; numbered if asked for again."""
    origin = rewrite.plain(origin)
    try:
        holder = gm.get_submodule(origin) if origin else None
    except AttributeError:
        holder = None
    return rewrite.free_name(gm, f"{origin}.neuron" if type(holder) is torch.nn.Module else origin)
