"""The proof: a settled SNN equals its QANN, code for code and output for output."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from spikezip.errors import CaptureError, EquivalenceError
from spikezip.graph import network, purity
from spikezip.graph.weights_hash import weights_sha256
from spikezip.kernels import exactly
from spikezip.measure.provenance import versions
from spikezip.measure.saving import save_text
from spikezip.quantize.exact import first_rounded
from spikezip.quantize.quantizer import Quantizer
from spikezip.run import Engine, Outcome, execute
from spikezip.run.engine import check_inputs, check_numbers
from spikezip.run.step import images_first, outputs_first, pieces
from spikezip.spike.encoding import Encoding
from spikezip.spike.neuron import STBIF
from spikezip.spike.swap import SpikingNetwork


@dataclass(frozen=True)
class Condition:
    """One condition of the equivalence theorem, checked on this network.

    Attributes:
        id: C1 to C6.
        text: what must hold.
        holds: whether it does.
        evidence: what was looked at.
    """

    id: str
    text: str
    holds: bool
    evidence: str


@dataclass(frozen=True)
class LayerCheck:
    """One neuron layer of a certificate: how many codes were compared and how many differ."""

    name: str
    mismatches: int
    codes_checked: int


@dataclass(frozen=True)
class Certificate:
    """What was proved, on which images, under which conditions.

    Attributes:
        equal: every image settled, no code differs, and every output is equal to the last bit.
        images: how many images were checked.
        mismatches: codes that differ, over all layers.
        outputs_equal: outputs are equal to the last bit.
        outcome: SETTLED, or STEP_LIMIT if the steps ran out.
        engine: which engine ran the SNN.
        layers: one :class:`LayerCheck` per neuron layer.
        settled_at: T_eq per image; -1 where the steps ran out.
        bound: the static bound on T_eq.
        conditions: C1 to C6.
        exactness: arithmetic per operation, for an integer network (empty otherwise).
        weights_sha256: of the SNN's weights.
        seed: as the caller gave it; the proof itself draws nothing.
        versions: of spikezip, torch and Python.
        nan: for how many images the QANN itself returns NaN, which equals nothing.
    """

    equal: bool
    images: int
    mismatches: int
    outputs_equal: bool
    outcome: str
    engine: str
    layers: tuple[LayerCheck, ...]
    settled_at: tuple[int, ...]
    bound: int
    conditions: tuple[Condition, ...]
    exactness: tuple[Mapping[str, Any], ...]
    weights_sha256: str
    seed: int | None
    versions: Mapping[str, str]
    nan: int = 0

    def to_json(self) -> dict[str, Any]:
        """The certificate as plain data; ``settled_at`` as mean, maximum and histogram."""
        settled = torch.tensor(self.settled_at, dtype=torch.float64)
        times, counts = torch.tensor(self.settled_at).unique(return_counts=True)
        return {
            "format": "spikezip.certificate/1",
            **asdict(self),
            "settled_at": {
                "mean": float(settled.mean()),
                "max": int(settled.max()),
                "histogram": {str(int(t)): int(c) for t, c in zip(times, counts, strict=True)},
            },
        }

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write it as JSON in one step; OutputError if it exists and not ``overwrite``, or cannot be written."""
        return save_text(path, json.dumps(self.to_json(), indent=1) + "\n", overwrite=overwrite)

    def require(self) -> Certificate:
        """Return the certificate, or raise EquivalenceError naming the first layer that differs and the step.

        Raised too where all was equal but a condition does not hold, so that on other images it need not be.
        """
        failed = [condition for condition in self.conditions if not condition.holds]
        if self.equal and failed:
            raise EquivalenceError(
                f"The SNN equals its QANN on these images, but {failed[0].id} does not hold ({failed[0].text}): "
                f"{failed[0].evidence}. Convert the network anew."
            )
        if self.equal:
            return self
        unsettled = sum(t < 0 for t in self.settled_at)
        if unsettled:
            raise EquivalenceError(
                f"{unsettled} of {self.images} images did not settle in the steps they were given (the bound is "
                f"{self.bound} after the release). Run longer, or leave steps unset."
            )
        for layer in self.layers:
            if layer.mismatches:
                raise EquivalenceError(
                    f"The SNN differs from its QANN first in layer {layer.name!r}: {layer.mismatches} of "
                    f"{layer.codes_checked} codes, at step {max(self.settled_at)} (settled; engine {self.engine}). "
                    "In floating point use the reference engine, or to_integer() for exactness in every engine."
                )
        if self.nan:
            raise EquivalenceError(
                f"Every code of the SNN equals the QANN's, but the QANN itself returns NaN for {self.nan} of "
                f"{self.images} images, and NaN equals nothing. Look for a logarithm or a root of a negative value, or "
                "0 divided by 0."
            )
        raise EquivalenceError(
            f"Every code of the SNN equals the QANN's, but its outputs do not, at step {max(self.settled_at)}: "
            f"the last operations round differently in engine {self.engine}. Use the reference engine, or to_integer()."
        )


def default_engine(snn: SpikingNetwork) -> Engine:
    """SWEEP where arithmetic is exact, REFERENCE (the QANN's own operations on its own batches) where it is not."""
    return Engine.SWEEP if _is_exact(snn) else Engine.REFERENCE


def _is_exact(snn: SpikingNetwork) -> bool:
    entries = network.note(snn.graph, "exactness", ())
    return bool(network.note(snn.graph, "weight_bits")) and all(e.arithmetic != "inexact" for e in entries)


def verify(
    snn: SpikingNetwork,
    images: Tensor | Sequence[Tensor],
    *,
    steps: int | None = None,
    engine: Engine | None = None,
    batch: int = 64,
    seed: int | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Certificate:
    """Run the SNN until it settles and compare every neuron's code, and the outputs, with the QANN's, to the bit.

    Args:
        snn: the network.
        images: inputs ``[N, ...]``.
        steps: steps at most; None: as many as the static bound allows.
        engine: SWEEP for integer networks, REFERENCE otherwise, if not given.
        batch: images run together; QANN and SNN see the same batches.
        seed: written into the certificate.
        on_batch: told how many images were done, batch by batch (for a progress bar).

    Returns:
        The :class:`Certificate`; call ``.require()`` on it to raise where it is not equal.

    Raises:
        InputError: the images do not fit the network.
        StageError: ``steps`` or ``batch`` is no number, the engine cannot run this network, or the encoding lasts as
            long as the run and no ``steps`` are given.
    """
    inputs = check_inputs(snn, images)
    check_numbers(steps=steps, batch=batch)
    engine = default_engine(snn) if engine is None else engine
    # A copy: of the network itself an engine may have packed weights that were changed since behind torch's back.
    snn = replace(snn, graph=network.fork(snn.graph))
    count = inputs[0].shape[0]
    mismatches = {name: 0 for name, _ in snn.layers}
    checked = {name: 0 for name, _ in snn.layers}
    settled: list[int] = []
    outputs_equal, nan = True, 0
    for _, piece in pieces(inputs, batch):
        run = execute(snn, piece, steps, engine=engine, batch=batch)
        codes, outputs = qann_codes(snn, piece)
        for name, expected in codes.items():
            mismatches[name] += int((run.codes[name].reshape(expected.shape) != expected).sum())
            checked[name] += expected.numel()
        outputs_equal &= all(torch.equal(mine[-1], theirs) for mine, theirs in zip(run.outputs, outputs, strict=True))
        nan += int(torch.stack([y.isnan().reshape(len(y), -1).any(1) for y in outputs]).any(0).sum())
        settled += run.settled_at.tolist()
        if on_batch:
            on_batch(piece[0].shape[0])
    total = sum(mismatches.values())
    outcome = Outcome.SETTLED if min(settled) > 0 else Outcome.STEP_LIMIT
    return Certificate(
        equal=outcome is Outcome.SETTLED and total == 0 and outputs_equal,
        images=count,
        mismatches=total,
        outputs_equal=outputs_equal,
        outcome=outcome.value,
        engine=engine.value,
        layers=tuple(LayerCheck(n, mismatches[n], checked[n]) for n, _ in snn.layers),
        settled_at=tuple(settled),
        bound=snn.t_off(steps or 1) + snn.bound,
        conditions=conditions(snn, engine, steps),
        exactness=tuple(exactness(snn)),
        weights_sha256=weights_sha256(snn.graph),
        seed=seed,
        versions=versions(),
        nan=nan,
    )


def exactness(snn: SpikingNetwork) -> list[dict[str, Any]]:
    """In which arithmetic each operation of an integer network adds up; ``bits`` is None for sums on no grid."""
    entries = [asdict(entry) for entry in network.note(snn.graph, "exactness", ())]
    return [{**entry, "bits": entry["bits"] if math.isfinite(entry["bits"]) else None} for entry in entries]


@torch.no_grad()
@exactly
def qann_codes(snn: SpikingNetwork, inputs: tuple[Tensor, ...]) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """Every quantizer's codes, and the outputs, of the QANN on one batch; images first."""
    codes: dict[str, Tensor] = {}
    qann, images = snn.qann, inputs[0].shape[0]

    class Codes(fx.Interpreter):
        extra_traceback = False

        def run_node(self, n: fx.Node) -> Any:
            if n.op == "call_module" and isinstance(quantizer := self.fetch_attr(str(n.target)), Quantizer):
                drive = self.fetch_args_kwargs_from_env(n)[0][0]
                found = quantizer.codes(drive)
                codes[str(n.target)] = images_first(found, network.spec(n), images)
                return found * quantizer.scale
            return super().run_node(n)

    return codes, outputs_first(qann, Codes(qann).run(*inputs), images)


def start_text(snn: SpikingNetwork) -> str:
    """Where tracers start, in words."""
    code = snn.initial_code
    return str(code) if isinstance(code, int) else "codes of their own"


def _is_delivered(encoding: Encoding, steps: int) -> bool:
    """Whether a signal is there in full from ``t_off`` on, to the end of the run, and not all along before."""
    late = encoding.t_off(steps) - 1
    shares = [encoding.share(t, steps) for t in range(1, max(steps, late + 1) + 1)]
    return all(s == 1.0 for s in shares[late:]) and (late == 0 or any(s < 1.0 for s in shares[:late]))


def conditions(snn: SpikingNetwork, engine: Engine | None = None, steps: int | None = None) -> tuple[Condition, ...]:
    """C1 to C6 of the theorem, each looked up in this very network, run by ``engine`` (by default, its own) for
    ``steps`` steps (by default, until every image has settled)."""
    layers = snn.layers
    c1 = all(
        0 < float(n.threshold) < math.inf
        and n.levels.lowest <= 0 <= n.levels.highest
        and float(n.target(torch.zeros(()))) == 0
        and n.levels.lowest <= n.starts[0] <= n.starts[1] <= n.levels.highest
        for _, n in layers
    )
    try:
        purity.refuse_impure(snn.graph)
        c2, pure = True, "every operation is deterministic and without side effects (by its schema and tags)"
    except CaptureError as error:
        c2, pure = False, str(error)
    snn.graph.graph.lint()
    most = max(steps or 1, snn.t_off(1) + snn.bound + 1)  # looked at beyond the run too
    c3 = _is_delivered(snn.encoding, most) and _is_delivered(snn.bias_encoding, most)
    steps = steps or most
    t_off = snn.t_off(steps)
    c5 = all(
        isinstance(n, STBIF) and n.slew >= 1 and q.levels == n.levels
        for (_, n), (_, q) in zip(layers, network.modules_of(snn.qann, Quantizer), strict=True)
    )
    bits = network.note(snn.graph, "weight_bits")
    if bits:
        entries = network.note(snn.graph, "exactness", ())
        inexact = [e.name for e in entries if e.arithmetic == "inexact"]
        wide = sum(e.arithmetic == "float64" for e in entries)
        most = max((e.bits for e in entries if e.bits < 1000), default=0)
        evidence = (
            f"integer weights ({bits} bits): sums need at most {most:.1f} bits; {wide} of {len(entries)} in float64"
        )
        if inexact:
            evidence += f"; off the grid: {', '.join(inexact[:5])} (same kernels, same batches)"
        rounded = first_rounded(snn.qann, known=inexact)
        c6 = rounded is None
        if rounded is not None:
            evidence = f"{network.describe(rounded)} no longer adds up exactly: weights were changed after to_integer()"
    else:
        c6 = (engine or default_engine(snn)) is Engine.REFERENCE
        evidence = "floating point: the reference engine runs the QANN's own operations on the QANN's own batches"
        if not c6:
            evidence = "floating point: this engine adds up in another order than the QANN, and may round differently"
    return (
        Condition("C1", "every quantizer is a staircase with lowest <= Q(0) = 0 <= highest, and tracers start on it",
                  c1, f"{len(layers)} neuron layers; tracers start at {start_text(snn)}"),
        Condition("C2", "everything else is a function of the accumulated signal", c2, pure),
        Condition("C3", "input and bias are delivered exactly once, by a finite T_off", c3,
                  f"input {snn.encoding}, bias {snn.bias_encoding}: complete from step {t_off} on, of {steps}"),
        Condition("C4", "the graph is acyclic", True, f"{len(snn.graph.graph.nodes)} nodes in topological order"),
        Condition("C5", "both spike signs, the tracer's limits are the quantizer's, no leak", c5,
                  f"ST-BIF, slew {snn.slew}"),
        Condition("C6", "the same tie rule (floor(u + 1/2)) and exact, or same-kernel, arithmetic", c6, evidence),
    )  # fmt: skip
