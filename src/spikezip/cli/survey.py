"""What the road would do to a network: each stage is tried on a copy and the places it changed are listed."""

from __future__ import annotations

import copy
import operator
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from spikezip.errors import CaptureError, SpikezipError, StageError
from spikezip.graph import network, ops
from spikezip.graph.capture import capture
from spikezip.levels import Levels
from spikezip.morph import RULES, Morph, Rule
from spikezip.quantize import Quantizer, quantize
from spikezip.quantize.integer import check_integer
from spikezip.spike.swap import check_qann


@dataclass(frozen=True)
class Change:
    """What one rule does in one place."""

    rule: str
    text: str


@dataclass(frozen=True)
class Applied:
    """A rule that changed something."""

    name: str
    why: str
    keeps: bool
    source: str
    count: int


@dataclass
class Place:
    """One of the author's modules: what was captured under its name, and what becomes of it."""

    name: str
    operations: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    changes: list[Change] = field(default_factory=list)
    neurons: list[tuple[str, int, int]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Survey:
    """What :func:`survey` found; ``refused`` holds the reasons why the network cannot be converted as it is."""

    model: str
    parameters: int
    places: tuple[Place, ...]
    rules: tuple[Applied, ...]
    neuron_layers: int
    neurons: int
    refused: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The same as plain lists and dictionaries."""
        return {
            "model": self.model,
            "parameters": self.parameters,
            "convertible": not self.refused,
            "refused": list(self.refused),
            "neuron_layers": self.neuron_layers,
            "neurons": self.neurons,
            "rules": [vars(rule) for rule in self.rules],
            "places": [
                {
                    **vars(place),
                    "shape": list(place.shape),
                    "changes": [vars(change) for change in place.changes],
                    "neurons": [{"name": n, "lowest": low, "highest": high} for n, low, high in place.neurons],
                }
                for place in self.places
            ],
        }


def survey(
    name: str,
    module: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    choice: Morph,
    levels: int | Levels,
    weight_bits: int | None,
) -> Survey:
    """Capture a model and try every rule and the quantizers on it.

    Args:
        name: how the user called the model.
        module: the model; it is left as it is.
        example: an input ``[B, ...]``, or several.
        choice: which morphing rules are asked for.
        levels: how many levels the neurons would have.
        weight_bits: bits of the integer weights it would have; None for floats.

    Raises:
        CaptureError: the model does not take the example. What is refused of the model itself is listed, not raised.
    """
    parameters = sum(p.numel() for p in module.parameters())
    try:
        gm = capture(module, example)
    except (CaptureError, StageError) as reason:
        if not _takes(module, example):
            raise
        return Survey(name, parameters, (), (), 0, 0, (str(reason),))
    places = _captured(gm)
    refused: list[str] = []
    rules: list[Applied] = []
    neurons: list[tuple[fx.Node, Quantizer]] = []
    try:
        for rule in RULES:
            if rule.asked(choice) and (count := _try_rule(rule, gm, places)):
                rules.append(Applied(rule.name, rule.why, rule.keeps, rule.source, count))
        qann = quantize(gm, levels)
        neurons = list(network.modules_of(qann, Quantizer))
        for node, quantizer in neurons:
            place = places[_home(network.origin(node), places)]
            place.neurons.append((network.origin(node), quantizer.levels.lowest, quantizer.levels.highest))
        if not neurons:  # where there are some, their scales are not calibrated yet
            check_qann(qann)
        elif weight_bits:
            check_integer(qann, weight_bits)
    except SpikezipError as reason:
        refused.append(str(reason))
        _blame(str(reason), places)
    total = sum(network.spec(node).numel for node, _ in neurons)
    return Survey(name, parameters, tuple(places.values()), tuple(rules), len(neurons), total, tuple(refused))


@torch.no_grad()
def _takes(module: nn.Module, example: Tensor | tuple[Tensor, ...]) -> bool:
    """Whether the model itself, without capture, answers on the example."""
    try:
        copy.deepcopy(module).eval()(*(example if isinstance(example, tuple) else (example,)))
    except Exception:
        return False
    return True


def _captured(gm: fx.GraphModule) -> dict[str, Place]:
    places: dict[str, Place] = {}
    for node in gm.graph.nodes:
        several = bool(node.users) and all(user.target is operator.getitem for user in node.users)
        # getitem and sizes are bookkeeping of the graph, not the author's operations.
        if node.op != "call_function" or ("spec" not in node.meta and not several):
            continue
        place = places.setdefault(network.origin(node), Place(network.origin(node)))
        if node.target is not operator.getitem:
            place.operations.append(_plain(network.op_name(node)))
        if "spec" in node.meta:
            place.shape = network.spec(node).shape[1:]
            kind = ops.kind(node).name.lower()
            if kind not in place.kinds and node.target is not operator.getitem:
                place.kinds.append(kind)
    return places


def _plain(op: str) -> str:
    """``_native_batch_norm_legit_no_training`` -> ``batch_norm``."""
    return "batch_norm" if "batch_norm" in op else op.lstrip("_")


def _try_rule(rule: Rule, gm: fx.GraphModule, places: dict[str, Place]) -> int:
    before = _operations(gm)
    count = rule.apply(gm)
    after = _operations(gm)
    for name in sorted({*before, *after}):
        gone = before.get(name, Counter()) - after.get(name, Counter())
        new = after.get(name, Counter()) - before.get(name, Counter())
        if gone or new:
            text = f"{_listed(gone) or 'nothing'} -> {_listed(new) or 'nothing left'}"
            places[_home(name, places)].changes.append(Change(rule.name, text))
    return count


def _operations(gm: fx.GraphModule) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for node in gm.graph.nodes:
        if node.op == "call_function" and node.target is not operator.getitem:
            found.setdefault(network.origin(node), Counter())[_plain(network.op_name(node))] += 1
    return found


def _listed(operations: Counter[str]) -> str:
    return ", ".join(op if count == 1 else f"{count} {op}" for op, count in operations.items())


def _home(name: str, places: dict[str, Place]) -> str:
    """The author's name under which something that a stage put there belongs (``relu_2``, ``layer1.neuron``, ...)."""
    for candidate in (name, re.sub(r"_\d+$", "", name), re.sub(r"(\.neuron)(_\d+)?$", "", name)):
        if candidate in places:
            return candidate
    places[name] = Place(name)
    return name


def _blame(reason: str, places: dict[str, Place]) -> None:
    """Write a refusal beside the place it names."""
    for quoted in re.findall(r"'([^']*)'", reason):
        if quoted in places:
            places[quoted].refused.append(reason)
            return
