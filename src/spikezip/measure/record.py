"""What happened, as numbers: the record of a run, and the file every report is made from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikezip.errors import InputError
from spikezip.graph import network, ops
from spikezip.graph.modes import building
from spikezip.graph.ops import Kind
from spikezip.graph.quiet import evaluating
from spikezip.measure.audit import audit_of
from spikezip.measure.conditions import exactness, start_text
from spikezip.measure.counts import count as count_operations
from spikezip.measure.energy import DEFAULT_MODELS, EnergyModel, energy_record
from spikezip.measure.equivalence import Certificate, qann_codes
from spikezip.measure.exits import CURVE, check_labels, exit_steps
from spikezip.measure.provenance import provenance
from spikezip.measure.saving import save_json
from spikezip.measure.traces import raster, traces
from spikezip.percent import percent
from spikezip.quantize.integer import divided_out
from spikezip.run import EarlyExit, Engine, Outcome, Run, execute
from spikezip.run.engine import check_inputs, check_numbers, qann_outputs
from spikezip.run.exit import Settled, are_logits, check_exit
from spikezip.run.step import first_tensor, images_first, pieces
from spikezip.spike.swap import SpikingNetwork, tracer_shape


@dataclass(frozen=True)
class Record:
    """One measured run, as plain data (see docs/record.md for the schema)."""

    content: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.content[key]

    def __repr__(self) -> str:
        data, settled = self["data"], self["settled"]["outcome"]
        right = {n: a[-1] if isinstance(a, list) else a for n, a in (self["accuracy"] or {}).items()}
        shown = "".join(f", {n.upper()} {percent(a)}" for n, a in right.items() if a is not None)
        return (
            f"<Record of {self['name']} on {data['name']} ({data['split']}): images={data['images']}, "
            f"steps={self['steps']}, {settled}{shown}>"
        )

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write ``record.json`` in one step; OutputError if it exists and not ``overwrite``, or cannot be written.

        Also raised where a number is NaN or infinite; the message names its place.
        """
        return save_json(path, self.content, overwrite=overwrite)


@torch.no_grad()
@building()
def measure(
    snn: SpikingNetwork,
    images: Tensor | Sequence[Tensor],
    labels: Tensor | None = None,
    *,
    ann: nn.Module | None = None,
    steps: int | None = None,
    engine: Engine = Engine.SWEEP,
    batch: int = 64,
    data: str | None = None,
    split: str = "test",
    name: str | None = None,
    certificate: Certificate | None = None,
    seed: int | None = None,
    distances: int = 512,
    on_batch: Callable[[int], None] | None = None,
    energy: bool = True,
    energy_images: int = 64,
    energy_models: Sequence[EnergyModel | str] | None = None,
    early_exit: Sequence[EarlyExit] = (),
    on_counted: Callable[[int], None] | None = None,
) -> Record:
    """Run an SNN and count: accuracy at every step, spikes, distance from the QANN, when it settled.

    Args:
        snn: the network.
        images: inputs ``[N, ...]``.
        labels: classes ``[N]``; None leaves the accuracies out. Where the network's (first) output is no row of
            classes, accuracies and agreement are left out.
        ann: the network it came from, to be measured beside it.
        steps: steps of the run; None until every image has settled.
        engine: which engine runs it.
        batch: images run together.
        data: name of the data set, for the record.
        split: which part of it.
        name: name of the run; the model's if not given.
        certificate: proof to keep with the record.
        seed: written into the record.
        distances: on how many images, in whole batches from the first, codes are compared with the QANN's, layer by
            layer and step by step (it costs more than the run itself); the record says on how many as ``compared``.
        on_batch: told how many images were done, batch by batch (for a progress bar).
        energy: count operations and memory accesses too, and price them (see docs/energy.md).
        energy_images: how many images that is done on, step by step; the first ones.
        energy_models: the models to price them with, or names; a few of those that come with spikezip if not given.
        early_exit: rules of early exit; what each would give on these images, found from the same run.
        on_counted: as ``on_batch``, for the images that operations are counted on.

    Returns:
        The :class:`Record`.

    Raises:
        InputError: the images do not fit the network, or labels the images; there are labels, and the network gives
            one number; a rule of early exit is none; or two energy models have one name.
        StageError: ``steps``, ``batch`` or ``distances`` is not a positive whole number.
    """
    inputs = check_inputs(snn, images)
    count = inputs[0].shape[0]
    check_numbers(steps=steps, batch=batch, distances=distances, energy_images=energy_images if energy else None)
    if labels is not None:
        shape = tracer_shape(network.spec(network.outputs(snn.graph)[0]))
        if shape.numel() == 1:
            raise InputError("The network gives one number an image, not classes; leave labels out.")
        check_labels(labels, count, shape[0] if len(shape) == 1 else None)
    if not isinstance(early_exit, Sequence):
        raise InputError(f"early_exit={early_exit!r}: give a sequence of rules, such as [Margin(0.6), Settled()].")
    for rule in early_exit:
        check_exit(rule)
    if isinstance(energy_models, str):
        raise InputError(f"energy_models={energy_models!r}: give a sequence, such as [{energy_models!r}].")
    models = [
        model if isinstance(model, EnergyModel) else EnergyModel.named(model)
        for model in (DEFAULT_MODELS if energy_models is None else energy_models)
    ]
    if again := [m.name for i, m in enumerate(models) if m.name in {n.name for n in models[:i]}]:
        raise InputError(f"Two energy models are named {again[0]!r}, so figures would be mixed up. Rename one.")
    if steps is None:
        steps = int(execute(snn, images, engine=engine, batch=batch).settled_at.max())
    tally = _Tally(snn, steps, distances, early_exit)
    for start, piece in pieces(inputs, batch):
        answers = labels[start : start + batch] if labels is not None else None
        tally.add(piece, answers, ann, engine)
        if on_batch:
            on_batch(piece[0].shape[0])
    counts = count_operations(snn, inputs, steps, limit=energy_images, on_batch=on_counted) if energy else None
    return Record(
        {
            "format": "spikezip.record/1",
            "name": name or str(network.note(snn.graph, "model") or "network"),
            **provenance(seed),
            "data": {"name": data or network.note(snn.graph, "data") or "images", "split": split, "images": count},
            "network": _describe(snn),
            "encoding": {"name": snn.encoding.name, "t_off": snn.t_off(steps)},
            "neuron": "ST-BIF",
            "slew": snn.slew,
            "initial_code": start_text(snn),
            "steps": steps,
            "engine": engine.value,
            **tally.result(labels is not None, ann is not None),
            "weights": _weights(snn),
            "energy": energy_record(counts, models) if counts else None,
            "synops": counts.synops.tolist() if counts else None,
            "audit": audit_of(snn, counts).to_json() if counts else None,
            "exactness": exactness(snn) or None,
            "traces": traces(snn, tuple(x[:1] for x in inputs), steps),
            "raster": raster(snn, tuple(x[:1] for x in inputs), steps),
            "certificate": certificate.to_json() if certificate else None,
        }
    )


class _Gaps:
    """How far each layer is from the QANN, per step and image of one batch."""

    def __init__(self, snn: SpikingNetwork, final: Mapping[str, Tensor], steps: int, images: int):
        self.final, self.images = final, images
        self.neurons = dict(snn.layers)
        self.l1 = {n: torch.zeros((steps, images), dtype=torch.float64) for n in self.neurons}
        self.differ = {n: torch.zeros((steps, images), dtype=torch.float64) for n in self.neurons}

    def observe(self, layer: str, first: int, which: Tensor, codes: Tensor) -> None:
        """An :data:`Observer`."""
        goal = self.final[layer].reshape(self.images, -1).index_select(0, which.to(codes.device))
        gap = codes.reshape(codes.shape[0], codes.shape[1], -1) - goal
        rows = slice(first - 1, first - 1 + codes.shape[0])
        theta = float(self.neurons[layer].threshold)
        self.l1[layer][rows, which] = gap.abs().mean(-1).double().cpu() * theta
        self.differ[layer][rows, which] = (gap != 0).double().mean(-1).cpu()
        # What has settled is not run any further: it stays as it is.
        self.l1[layer][rows.stop :, which] = self.l1[layer][rows.stop - 1, which]
        self.differ[layer][rows.stop :, which] = self.differ[layer][rows.stop - 1, which]


class _Exit:
    """What a rule of early exit gives, over batches; and, for a rule with a threshold, what other thresholds give."""

    def __init__(self, rule: EarlyExit, thresholds: Sequence[float] = ()):
        self.rule, self.steps, self.right, self.spikes = rule, 0, 0, 0
        self.others = [] if isinstance(rule, Settled) else [_Exit(type(rule)(value)) for value in thresholds]

    def add(self, run: Run, labels: Tensor | None) -> None:
        left = exit_steps(run, self.rule)
        images = torch.arange(left.numel())
        self.steps += int(left.sum())
        self.spikes += int(run.total_spikes.cumsum(0)[left - 1, images].sum())
        if labels is not None:
            answers = run.logits.argmax(-1).cpu()[left - 1, images]
            self.right += int((answers == labels.cpu()).sum())
        for other in self.others:
            other.add(run, labels)

    def result(self, images: int, labelled: bool) -> dict[str, Any]:
        found = self.point(images, labelled)
        return {**found, "curve": [other.point(images, labelled) for other in self.others]}

    def point(self, images: int, labelled: bool) -> dict[str, Any]:
        return {
            "rule": self.rule.name,
            "threshold": getattr(self.rule, "threshold", None),
            "mean_step": self.steps / images,
            "accuracy": self.right / images if labelled else None,
            "spikes": self.spikes / images,
        }


class _Tally:
    """Counts over batches."""

    def __init__(self, snn: SpikingNetwork, steps: int, distances: int, early_exit: Sequence[EarlyExit] = ()):
        self.exits = [_Exit(rule, CURVE) for rule in early_exit]
        self.snn, self.steps, self.images = snn, steps, 0
        self.distances, self.compared = distances, 0
        self.right = torch.zeros(steps, dtype=torch.int64)
        self.agree = torch.zeros(steps, dtype=torch.int64)
        self.qann_right = self.ann_right = 0
        self.settled: list[int] = []
        self.classifies = True
        zeros = lambda: {n: torch.zeros(steps, dtype=torch.float64) for n, _ in snn.layers}  # noqa: E731
        self.spikes, self.negative, self.l1, self.differ = zeros(), zeros(), zeros(), zeros()
        self.units = divided_out(snn.graph)
        self.codes = {n: torch.zeros(m.levels.count, dtype=torch.int64) for n, m in snn.layers}
        self.first_spike: int | None = None

    def add(self, piece: tuple[Tensor, ...], labels: Tensor | None, ann: nn.Module | None, engine: Engine) -> None:
        images = piece[0].shape[0]
        if self.compared < self.distances:
            final, outputs = qann_codes(self.snn, piece)
            gaps = _Gaps(self.snn, final, self.steps, images)
            run = execute(self.snn, piece, self.steps, engine=engine, batch=images, observe=gaps.observe)
            self.compared += images
            for name, _ in self.snn.layers:
                self.l1[name] += gaps.l1[name].sum(1)
                self.differ[name] += gaps.differ[name].sum(1)
        else:
            outputs = qann_outputs(self.snn, piece)
            run = execute(self.snn, piece, self.steps, engine=engine, batch=images)
        self.images += images
        answers = run.logits.argmax(-1) if are_logits(run.logits) else None
        if answers is not None:
            truth = outputs[0].argmax(-1)
            self.agree += (answers == truth).sum(1).cpu()
            if labels is not None:
                labels = labels.to(answers.device)
                self.right += (answers == labels).sum(1).cpu()
                self.qann_right += int((truth == labels).sum())
                if ann is not None:
                    with evaluating(ann):
                        first = first_tensor(ann(*piece))
                    logits = images_first(first, network.spec(network.outputs(self.snn.graph)[0]), images)
                    self.ann_right += int((logits.argmax(-1) == labels).sum())
        else:
            self.classifies = False
        self.settled += run.settled_at.tolist()
        for leaving in self.exits:
            leaving.add(run, labels)
        for name, neuron in self.snn.layers:
            self.spikes[name] += run.spikes[name].sum(1)
            self.negative[name] += run.negative[name].sum(1)
            shifted = run.codes[name].to(torch.int64).flatten().cpu() - neuron.levels.lowest
            self.codes[name] += torch.bincount(shifted, minlength=neuron.levels.count)
        last = run.spikes[self.snn.layers[-1][0]].any(1)
        if bool(last.any()):
            first = int(last.to(torch.int8).argmax()) + 1
            self.first_spike = first if self.first_spike is None else min(self.first_spike, first)

    def result(self, labelled: bool, with_ann: bool) -> dict[str, Any]:
        n = self.images
        classify = self.classifies
        done = [t for t in self.settled if t > 0]
        times, counts = torch.tensor(done or [0]).unique(return_counts=True)
        return {
            "accuracy": {
                "ann": self.ann_right / n if labelled and with_ann and classify else None,
                "qann": self.qann_right / n if labelled and classify else None,
                "snn": [int(r) / n for r in self.right] if labelled and classify else None,
            },
            "agreement": [int(a) / n for a in self.agree] if classify else None,
            "settled": {
                "outcome": (Outcome.SETTLED if len(done) == n else Outcome.STEP_LIMIT).value,
                "t_off": self.snn.t_off(self.steps),
                "first_output_spike": self.first_spike,
                "t_eq_mean": sum(done) / len(done) if len(done) == n else None,
                "t_eq_max": max(done) if len(done) == n else None,
                "bound": self.snn.t_off(self.steps) + self.snn.bound,
                "t_eq_histogram": {str(int(t)): int(c) for t, c in zip(times, counts)} if done else {},
            },
            "compared": self.compared,
            "layers": [self._layer(name) for name, _ in self.snn.layers],
            "early_exit": [leaving.result(n, labelled) for leaving in self.exits] or None,
        }

    def _layer(self, name: str) -> dict[str, Any]:
        neuron = dict(self.snn.layers)[name]
        total = sum(self.codes[name].tolist())
        size = total // self.images
        per_image = (self.spikes[name] / self.images).tolist()
        return {
            "name": name,
            "neurons": size,
            "lowest": neuron.levels.lowest,
            "highest": neuron.levels.highest,
            "scale": float(neuron.threshold),
            "unit": self.units.get(name),
            "spikes": per_image,
            "negative": (self.negative[name] / self.images).tolist(),
            "rate": [s / size for s in per_image],
            "l1": (self.l1[name] / self.compared).tolist(),
            "differ": (self.differ[name] / self.compared).tolist(),
            "codes": [int(c) / total for c in self.codes[name]],
        }


def _describe(snn: SpikingNetwork) -> dict[str, Any]:
    note = lambda key, default=None: network.note(snn.graph, key, default)  # noqa: E731
    return {
        "parameters": sum(p.numel() for p in snn.graph.parameters()),
        "neurons": sum(network.spec(n).numel for n in snn.graph.graph.nodes if str(n.target) in dict(snn.layers)),
        "tracker_layers": len(snn.layers),
        "weight_bits": note("weight_bits"),
        "residual": note("residual"),
        "fine_tuning": note("fine_tuning", "none"),
    }


def _weights(snn: SpikingNetwork) -> list[dict[str, Any]]:
    found = []
    for node in snn.graph.graph.nodes:
        if node.op != "call_function" or not ops.is_signal(node) or ops.kind(node) is not Kind.SYNAPTIC:
            continue
        weight = network.constant(ops.factor_of(node))
        if weight is None:
            continue
        values = weight.detach().float().flatten()
        low, high = float(values.min()), float(values.max())
        if not math.isfinite(low) or low == high:
            high = low + 1.0
        counts = torch.histc(values, 40, low, high)
        found.append(
            {
                "name": network.origin(node),
                "bits": network.note(snn.graph, "weight_bits"),
                "min": float(values.min()),
                "max": float(values.max()),
                "histogram": {
                    "edges": [low + (high - low) * i / 40 for i in range(41)],
                    "counts": [int(c) for c in counts],
                },
            }
        )
    return found
