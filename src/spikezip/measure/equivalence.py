"""The proof: a settled SNN equals its QANN, code for code and output for output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from spikezip.errors import EquivalenceError
from spikezip.graph import network
from spikezip.graph.modes import default_device
from spikezip.graph.weights_hash import weights_sha256
from spikezip.kernels import exactly
from spikezip.measure.conditions import Condition, conditions, default_engine, exactness
from spikezip.measure.provenance import versions
from spikezip.measure.saving import save_json
from spikezip.quantize.quantizer import Quantizer
from spikezip.run import Engine, Outcome, execute
from spikezip.run.engine import check_inputs, check_numbers
from spikezip.run.step import images_first, outputs_first, pieces
from spikezip.spike.swap import SpikingNetwork

_ROUNDING = 1e-3  # of the greatest output: what lies farther apart was not rounded differently


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
        steps: how many steps the SNN ran; of several batches, the one that took longest.
        conditions: C1 to C6.
        exactness: arithmetic per operation, for an integer network (empty otherwise).
        weights_sha256: of the SNN's weights.
        seed: as the caller gave it; the proof itself draws nothing.
        versions: of spikezip, torch and Python.
        nan: for how many images the QANN itself returns NaN, which equals nothing.
        apart: the greatest difference of an output from the QANN's, as a part of the greatest output.
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
    steps: int
    conditions: tuple[Condition, ...]
    exactness: tuple[Mapping[str, Any], ...]
    weights_sha256: str
    seed: int | None
    versions: Mapping[str, str]
    nan: int = 0
    apart: float = 0.0

    def __repr__(self) -> str:
        said = "equal" if self.equal else "NOT EQUAL"
        failed = "".join(f", {c.id} does not hold" for c in self.conditions if not c.holds)
        return (
            f"<Certificate {said}: images={self.images}, mismatches={self.mismatches}, "
            f"outputs_equal={self.outputs_equal}, {self.outcome} in {self.steps} steps (bound {self.bound}), "
            f"engine={self.engine}{failed}>"
        )

    def to_json(self) -> dict[str, Any]:
        """The certificate as plain data; ``settled_at`` as mean and maximum (None unless all settled) and histogram."""
        settled = [t for t in self.settled_at if t > 0]
        all_settled = len(settled) == self.images
        return {
            "format": "spikezip.certificate/1",
            **asdict(self),
            "settled_at": {
                "mean": sum(settled) / len(settled) if all_settled else None,
                "max": max(settled) if all_settled else None,
                "unsettled": self.images - len(settled),
                "histogram": {str(t): count for t, count in sorted(Counter(settled).items())},
            },
        }

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write it as JSON in one step; OutputError if it exists and not ``overwrite``, or cannot be written."""
        return save_json(path, self.to_json(), indent=1, overwrite=overwrite)

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
        if self.apart > _ROUNDING:
            raise EquivalenceError(
                f"Every code of the SNN equals the QANN's, but its outputs do not, at step {max(self.settled_at)}: "
                f"they are {100 * self.apart:.1f} % of the greatest output apart, which is no rounding. Find out "
                "whether an image's answer depends on the others in its batch, and use the reference engine."
            )
        raise EquivalenceError(
            f"Every code of the SNN equals the QANN's, but its outputs do not, at step {max(self.settled_at)}: "
            f"the last operations round differently in engine {self.engine}. Use the reference engine, or to_integer()."
        )


@default_device()
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
    outputs_equal, nan, taken, apart = True, 0, 0, 0.0
    for _, piece in pieces(inputs, batch):
        run = execute(snn, piece, steps, engine=engine, batch=batch)
        codes, outputs = qann_codes(snn, piece)
        for name, expected in codes.items():
            mismatches[name] += int((run.codes[name].reshape(expected.shape) != expected).sum())
            checked[name] += expected.numel()
        outputs_equal &= all(torch.equal(mine[-1], theirs) for mine, theirs in zip(run.outputs, outputs, strict=True))
        apart = max(apart, *(_apart(mine[-1], theirs) for mine, theirs in zip(run.outputs, outputs, strict=True)))
        nan += int(torch.stack([y.isnan().reshape(len(y), -1).any(1) for y in outputs]).any(0).sum())
        settled += run.settled_at.tolist()
        taken = max(taken, run.steps)
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
        steps=taken,
        conditions=conditions(snn, engine, steps),
        exactness=tuple(exactness(snn)),
        weights_sha256=weights_sha256(snn.graph),
        seed=seed,
        versions=versions(),
        nan=nan,
        apart=apart,
    )


def _apart(mine: Tensor, theirs: Tensor) -> float:
    """The greatest difference, as a part of the greatest value."""
    if torch.equal(mine, theirs):
        return 0.0
    a, b = (torch.nan_to_num(t if t.is_complex() else t.double()) for t in (mine, theirs))
    return float(((a - b).abs().amax() / b.abs().amax()).nan_to_num())


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
