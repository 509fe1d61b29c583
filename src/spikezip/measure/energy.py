"""Counts -> energy, by models that are data: a YAML file of prices with its source, and no code."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikezip.errors import InputError
from spikezip.measure.work import FLOAT_BITS, MEMORIES, OPERATIONS, Counts, Memory, Row, Work

NETWORKS = ("snn", "qann", "ann")
#: Models a record holds if none are asked for; the first is the one a report's headline and layers use.
DEFAULT_MODELS = ("lemaire-2022", "horowitz-45nm-int8", "horowitz-45nm-float32", "memory-45nm-int8")
_FIELDS = {"name", "source", "verified", "about", "unit", "weight_bits", "prices", *NETWORKS, "networks", "memory"}


@dataclass(frozen=True)
class EnergyModel:
    """A price in pJ for each operation and each memory access.

    Attributes:
        name: of the model.
        source: where its figures are published.
        verified: how they were checked; empty for figures that were not.
        about: what it covers and what it does not.
        prices: pJ per operation, for each network it can price (``snn``, ``qann``, ``ann``).
        access: ``(bytes, pJ)``: what an access to a memory of that size costs; in between, a straight line; beyond,
            the last. Empty where memory is free, or in the prices.
        word_bits: values are packed into words of so many bits, and cost their share of one; None: a value an access.
        bits: width of the values in a memory, where it is not the network's own.
        reuse: for a network, how many operations share one read of a weight or an activation; 1 if not given.
        weight_bits: of the integer weights that the SNN's and the QANN's prices are for; None where they are for any.

    >>> model = EnergyModel.named("horowitz-45nm-int8")
    >>> model.prices["snn"]["ac"], model.prices["qann"]["mac"]
    (0.03, 0.23)
    """

    name: str
    source: str
    verified: str
    about: str
    prices: Mapping[str, Mapping[str, float]]
    access: tuple[tuple[float, float], ...] = ()
    word_bits: int | None = None
    bits: Mapping[str, int] = field(default_factory=dict)
    reuse: Mapping[str, float] = field(default_factory=dict)
    weight_bits: int | None = None

    @classmethod
    def named(cls, name: str) -> EnergyModel:
        """One of the models that come with spikezip (:func:`energy_models` lists them)."""
        if name not in energy_models():
            raise InputError(
                f"There is no energy model {name!r}. There are {', '.join(energy_models())}; your own is read with "
                "EnergyModel.from_yaml(path)."
            )
        return cls.from_text((_folder() / f"{name}.yaml").read_text(), f"{name}.yaml")

    @classmethod
    def from_yaml(cls, path: str | Path) -> EnergyModel:
        """Read a model from a YAML file; InputError says what is wrong with it. docs/energy.md has an example."""
        try:
            text = Path(path).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The energy model {path} cannot be read: {error}.") from error
        return cls.from_text(text, str(path))

    @classmethod
    def from_text(cls, text: str, where: str = "energy model") -> EnergyModel:
        """Read a model from YAML text; ``where`` names it in messages."""
        import yaml

        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"{where} is not YAML: {error}.") from error
        return _Reader(where).model(content)

    def price(self, network: str, operation: str, memories: Mapping[str, Memory]) -> float:
        """pJ of one operation, with memories of these sizes; 0 for what the model leaves out."""
        given = self.prices[network].get(operation)
        if given is not None:
            return given
        name, _, way = operation.rpartition("_")
        if not self.access or way not in ("read", "write") or name not in MEMORIES:
            return 0.0
        memory = memories.get(name, Memory(0, 32))
        width = self.bits.get(name, memory.bits)
        cost = self._access(memory.values * width / 8)
        if operation in ("weight_read", "activation_read"):
            cost /= self.reuse.get(network, 1.0)
        return cost if self.word_bits is None else cost * width / self.word_bits

    def energy(self, network: str, work: Work) -> Tensor:
        """pJ of one layer's work: per step for an SNN, 0-dim otherwise."""
        total = torch.zeros((), dtype=torch.float64, device="cpu")
        for operation, count in work.operations.items():
            total = total + count * self.price(network, operation, work.memories)
        return total

    def _access(self, size: float) -> float:
        points = self.access
        if size >= points[-1][0]:
            return points[-1][1]
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            if size <= x1:
                return y0 + (y1 - y0) * max(size - x0, 0.0) / (x1 - x0)
        return points[-1][1]


@dataclass(frozen=True)
class Energy:
    """One model's energies for a run, pJ per image.

    Attributes:
        model: the model.
        snn: spent up to each step, ``[T]``.
        qann: by the bit-matched integer QANN; None where the model cannot price it.
        ann: by the ANN; None likewise.
        layers: per row of the counts, (SNN over all steps, QANN).
    """

    model: EnergyModel
    snn: Tensor
    qann: float | None
    ann: float | None
    layers: tuple[tuple[float, float | None], ...]

    @property
    def ratio(self) -> Tensor | None:
        """SNN / QANN, had one stopped at step t, ``[T]``: the figure to look at."""
        return self.snn / self.qann if self.qann else None


def price(counts: Counts, model: EnergyModel) -> Energy:
    """The energy of a counted run under a model."""
    steps = torch.zeros(counts.steps, dtype=torch.float64, device="cpu")
    totals: dict[str, float | None] = {}
    for network in NETWORKS[1:]:
        if network in model.prices:
            totals[network] = sum(float(model.energy(network, _work(row, network))) for row in counts.rows)
    layers = []
    for row in counts.rows:
        spent = model.energy("snn", row.snn)
        steps = steps + spent
        qann = float(model.energy("qann", row.qann)) if "qann" in model.prices else None
        layers.append((float(spent.sum()) if spent.dim() else 0.0, qann))
    return Energy(model, steps.cumsum(0), totals.get("qann"), totals.get("ann"), tuple(layers))


#: Counts that others hold already, for hardware that prices them instead.
_INSTEAD = ("mac_nonzero", "update")


def unpriced(counts: Counts, model: EnergyModel) -> tuple[str, ...]:
    """What the SNN did that a model leaves out of its energy, by the names of :data:`OPERATIONS`; not what is 0 there.

    ``memory accesses`` stands for all reads and writes, where none of them has a price.
    """
    free = [
        name
        for name in OPERATIONS
        if name not in _INSTEAD
        and any(row.snn.total(name) for row in counts.rows)
        and not any(row.snn.total(name) * model.price("snn", name, row.snn.memories) for row in counts.rows)
    ]
    accesses = [name for name in OPERATIONS if name.endswith(("_read", "_write"))]
    counted = [name for name in accesses if any(row.snn.total(name) for row in counts.rows)]
    if counted and set(counted) <= set(free):
        return (*(name for name in free if name not in accesses), "memory accesses")
    return tuple(free)


def cautions(counts: Counts, models: Sequence[EnergyModel]) -> list[str]:
    """Where the network's weights are floats, or wider than those that models price: how many layers, which models."""
    widths = [row.qann.memories["weight"].bits for row in counts.rows if "weight" in row.qann.memories]
    widest = max(widths, default=0)
    floats = widest == FLOAT_BITS
    low = [m for m in models if m.weight_bits is not None and (floats or widest > m.weight_bits)]
    if not low:
        return []
    layers = "one layer" if len(widths) == 1 else f"{len(widths)} layers"
    named = ", ".join(f"{m.name} (of {m.weight_bits} bits)" for m in low)
    bits = max(2, min(16, *(m.weight_bits or 16 for m in low)))  # what to_integer takes
    return [
        f"The weights of {layers} are {'floats' if floats else f'integers of {widest} bits'}, but priced as "
        f"{'integers' if floats else 'shorter ones'} by {named}: this network costs more than they say. Convert it "
        f"with weight_bits={bits} (--weight-bits {bits}) for one that costs what they say."
    ]


def _work(row: Row, network: str) -> Work:
    return row.qann if network == "qann" else row.ann


def energy_models() -> tuple[str, ...]:
    """Names of the models that come with spikezip."""
    return tuple(sorted(f.name.removesuffix(".yaml") for f in _folder().iterdir() if f.name.endswith(".yaml")))


def _folder() -> Any:
    return files("spikezip.measure") / "models"


def energy_record(counts: Counts, models: Sequence[EnergyModel]) -> dict[str, Any]:
    """The ``energy`` part of a record: every model's energies, and the layers under the first."""
    priced = [price(counts, model) for model in models]
    ratios = {e.model.name: e.ratio.tolist() for e in priced if e.ratio is not None}
    layers = []
    for i, row in enumerate(counts.rows):
        synops = [row.snn.operations[name] for name in ("ac", "mac") if name in row.snn.operations]
        spent = priced[0].layers[i] if priced else (None, None)
        layers.append(
            {
                "name": row.name,
                "kind": row.kind,
                "input": row.input,
                "snn_pj": spent[0],
                "qann_pj": spent[1],
                "synops": torch.stack(synops).sum(0).cumsum(0).tolist() if synops else [0.0] * counts.steps,
            }
        )
    return {
        "images": counts.images,
        "counts": [{"name": name, "snn": counts.snn(name).tolist(), "qann": counts.qann(name)} for name in OPERATIONS],
        "models": [
            {
                "name": e.model.name,
                "source": e.model.source,
                "about": e.model.about,
                "unpriced": list(unpriced(counts, e.model)),
                "snn_pj": e.snn.tolist(),
                "qann_pj": e.qann,
                "ann_pj": e.ann,
            }
            for e in priced
        ],
        "ratio": ratios,
        "uncounted": list(counts.uncounted),
        "cautions": cautions(counts, models),
        "layers": layers,
    }


class _Reader:
    """Checks what a YAML file holds, and says where it is wrong."""

    def __init__(self, where: str):
        self.where = where

    def fail(self, problem: str) -> InputError:
        return InputError(f"The energy model {self.where}: {problem}")

    def model(self, content: Any) -> EnergyModel:
        if not isinstance(content, dict):
            raise self.fail("it holds no mapping; start with 'name: my-chip'.")
        if unknown := sorted(str(key) for key in content if key not in _FIELDS):
            raise self.fail(f"there is no field {unknown[0]!r}; fields are {', '.join(sorted(_FIELDS))}.")
        for needed in ("name", "source"):
            if not isinstance(content.get(needed), str) or not content[needed].strip():
                raise self.fail(f"{needed!r} is missing; a figure without it cannot be checked.")
        if content.get("unit", "pJ") != "pJ":
            raise self.fail(f"unit is {content['unit']!r}; prices are in pJ (1 fJ is 0.001 pJ, 1 nJ is 1000 pJ).")
        networks = content.get("networks", list(NETWORKS))
        if not isinstance(networks, list) or "snn" not in networks or not set(networks) <= set(NETWORKS):
            raise self.fail(f"networks is {networks!r}; it lists some of {', '.join(NETWORKS)}, snn among them.")
        common = self.prices("prices", content.get("prices", {}))
        if not common and "memory" not in content:
            raise self.fail("it has no prices; add for example 'prices: {ac: 0.9, mac: 4.6}'.")
        prices = {n: {**common, **self.prices(n, content.get(n) or {})} for n in networks}
        access, word, bits, reuse = self.memory(content.get("memory") or {})
        return EnergyModel(
            content["name"].strip(),
            " ".join(content["source"].split()),
            " ".join(str(content.get("verified") or "").split()),
            " ".join(str(content.get("about") or "").split()),
            prices,
            access,
            word,
            bits,
            reuse,
            self.weight_bits(content.get("weight_bits")),
        )

    def weight_bits(self, given: Any) -> int | None:
        if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
            raise self.fail(f"weight_bits is {given!r}; it is the bits of the weights that are priced, for example 8.")
        return given

    def prices(self, field: str, given: Any) -> dict[str, float]:
        if not isinstance(given, dict):
            raise self.fail(f"{field!r} is {given!r}; it maps operations to pJ.")
        for name, value in given.items():
            if name not in OPERATIONS:
                raise self.fail(f"there is no operation {name!r} to price; there are {', '.join(OPERATIONS)}.")
            self.number(f"the price of {name!r}", value)
        return {name: float(value) for name, value in given.items()}

    def number(self, what: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise self.fail(f"{what} is {value!r}; it must be a number, 0 or more.")
        return float(value)

    def memory(
        self, given: Any
    ) -> tuple[tuple[tuple[float, float], ...], int | None, dict[str, int], dict[str, float]]:
        if not isinstance(given, dict) or not set(given) <= {"access", "word_bits", "bits", "reuse"}:
            raise self.fail(f"memory is {given!r}; it holds 'access', and perhaps 'word_bits', 'bits' and 'reuse'.")
        points = given.get("access", [])
        if not isinstance(points, list) or any(not isinstance(p, list) or len(p) != 2 for p in points):
            raise self.fail("memory.access lists pairs [bytes, pJ], for example [[8192, 10], [32768, 20]].")
        pairs = [(self.number("a memory's size", p[0]), self.number("an access", p[1])) for p in points]
        if given and (not pairs or any(a[0] >= b[0] for a, b in itertools.pairwise(pairs))):
            raise self.fail("memory.access must list sizes in rising order.")
        bits = given.get("bits", {})
        if not isinstance(bits, dict) or not set(bits) <= set(MEMORIES):
            raise self.fail(f"memory.bits is {bits!r}; it gives a width for some of {', '.join(MEMORIES)}.")
        for name, width in bits.items():
            self.number(f"the width of {name!r}", width)
        word = given.get("word_bits")
        word = None if word is None else int(self.number("word_bits", word))
        reuse = given.get("reuse", {})
        if not isinstance(reuse, dict) or not set(reuse) <= set(NETWORKS):
            raise self.fail(f"memory.reuse is {reuse!r}; it gives a number for some of {', '.join(NETWORKS)}.")
        if word == 0 or any(self.number("memory.reuse", value) < 1 for value in reuse.values()):
            raise self.fail("memory.reuse and memory.word_bits must be 1 or more.")
        return tuple(pairs), word, dict(bits), dict(reuse)
