"""A run in words and figures: the verdict, the outcome, the key figures, the provenance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spikezip.measure.audit import spikes_alone
from spikezip.report.figures import Run
from spikezip.report.schema import CertificatePart, Record
from spikezip.report.tables import compact, counted, energy, percent, plain

NEAR = 0.01  # as good as the QANN, to within a point of accuracy
CONDITIONS = ("C1", "C2", "C3", "C4", "C5", "C6")


@dataclass(frozen=True)
class Verdict:
    """What the certificate says: ``sign`` is equal, unequal or unverified (it picks mark and colour)."""

    sign: str
    headline: str
    sentence: str


@dataclass(frozen=True)
class KeyFigure:
    """One key figure: what it is, its value, and what to hold it against."""

    name: str
    value: str
    note: str = ""


def verdict(record: Record) -> Verdict:
    """The certificate in a sentence, no stronger than it is."""
    proof = record.certificate
    if proof is None:
        told = ""
        if record.agreement:
            share = percent(record.agreement[-1])
            told = f" Its predictions agree with the QANN's on {share} of images, which is no proof."
        return Verdict(
            "unverified",
            "Not verified",
            f"No certificate was made, so whether this SNN computes what its QANN computes is not known.{told}"
            " To have one here: spikezip run ... --verify, or measure(..., certificate=verify(snn, images)).",
        )
    checked = f"on {counted(proof.images, 'image')}{f' with the {proof.engine} engine' if proof.engine else ''}"
    if not proof.equal:
        first = next((layer for layer in proof.layers if layer.mismatches), None)
        where = f", first in {first.name} ({counted(first.mismatches, 'code')})" if first else ""
        outputs = (
            ""
            if proof.outputs_equal is None
            else f" The outputs are {'equal' if proof.outputs_equal else 'not equal'}."
        )
        codes = f"{proof.mismatches:,} code{' differs' if proof.mismatches == 1 else 's differ'}{where}"
        limit = proof.outcome == "STEP_LIMIT" or (record.settled is not None and record.settled.outcome == "STEP_LIMIT")
        unsettled = " Not every image had settled when the steps ran out (STEP_LIMIT)." if limit else ""
        return Verdict(
            "unequal",
            "Not shown equal to its quantized network (QANN)" if limit else "Not equal to its quantized network (QANN)",
            f"Checked {checked}: {codes if proof.mismatches else 'no code differs'}.{outputs}{unsettled}",
        )
    when = (
        f" It settled by step {proof.settled_at.max} at the latest."
        if proof.settled_at and proof.settled_at.max
        else ""
    )
    codes = sum(layer.codes_checked for layer in proof.layers)
    what = f"all {codes:,} codes" if codes else "every code"
    outputs = " and the outputs" if proof.outputs_equal else " (the outputs were not compared)"
    return Verdict(
        "equal",
        "Equal to its quantized network (QANN)",
        f"Checked {checked}: {what}{outputs} are the QANN's.{when} {_reach(proof)}",
    )


def _reach(proof: CertificatePart) -> str:
    """How far beyond the images checked an 'equal' carries: to every input only if all conditions are shown to hold."""
    state = {condition.id: condition.holds for condition in proof.conditions}
    failing = [name for name, holds in state.items() if holds is False]
    unknown = [name for name in (*CONDITIONS, *(set(state) - set(CONDITIONS))) if state.get(name) is None]
    if failing:
        return f"{_these(failing)} violated, so equality is measured on these images, not proven for others."
    if unknown:
        names = _these(sorted(unknown))
        return f"{names} not shown to hold, so equality is measured on these images, not proven for others."
    return "All conditions of the equivalence theorem hold, so once settled it is equal on every input."


def _these(names: Sequence[str]) -> str:
    one = len(names) == 1
    return f"Condition{'' if one else 's'} {', '.join(names)} {'is' if one else 'are'}"


def story(record: Record) -> str | None:
    """The run in a breath: how soon it is as good as its QANN, when images settle, what an answer costs."""
    said = []
    result, ended = record.accuracy, record.settled
    if result and result.snn and result.qann is not None:
        near = next((t for t in range(1, record.steps + 1) if min(result.snn[t - 1 :]) >= result.qann - NEAR), None)
        goal = percent(result.qann)
        said.append(
            f"From t = {near} on it is at least as accurate as its QANN ({goal}), to within a point."
            if near
            else f"Its accuracy is not within a point of its QANN's ({goal}) by t = {record.steps}."
        )
    if ended and ended.outcome == "SETTLED" and ended.t_eq_mean is not None:
        said.append(f"Images settle at t = {ended.t_eq_mean:.2f} on average.")
    if (cost := _cost(record)) is not None:
        said.append(cost)
    return " ".join(said) or None


def _cost(record: Record) -> str | None:
    """What the whole run costs, by the record's first model and by the others."""
    models = [m for m in (record.energy.models if record.energy else ()) if m.qann_pj and m.snn_pj]
    ratios = [m.snn_pj[-1] / (m.qann_pj or 1.0) for m in models]
    if not ratios:
        return None
    hardware = " on integer hardware" if record.network.weight_bits else ""
    others = f", {min(ratios[1:]):.2g} to {max(ratios[1:]):.3g} times by other models" if ratios[1:] else ""
    return (
        f"The whole run takes {ratios[0]:.3g} times the energy of that QANN{hardware}, by the model"
        f" {models[0].name}{others}."
    )


def outcome(record: Record) -> str | None:
    """How the run ended, plainly; nothing where it settled."""
    ended = record.settled
    if ended is None:
        return "Whether the network settled was not recorded: figures at the last step may not be final."
    if ended.outcome == "STEP_LIMIT":
        return (
            f"The run stopped at its limit of {counted(record.steps, 'step')} before every neuron was silent"
            " (STEP_LIMIT): figures at the last step are those of an unsettled network. Run it longer to see it settle."
        )
    if ended.outcome == "CONFIDENT":
        return "The run stopped images once they were confident (CONFIDENT), not once they had settled."
    return None


def key_figures(record: Record) -> list[KeyFigure]:
    """The figures people ask for first; those that were not measured are left out."""
    figures: list[KeyFigure] = []
    result, ended = record.accuracy, record.settled
    if result and result.snn:
        notes = [f"{name} {percent(v)}" for name, v in (("QANN", result.qann), ("ANN", result.ann)) if v is not None]
        figures.append(
            KeyFigure("SNN accuracy", percent(result.snn[-1]), " · ".join([f"at t = {record.steps}", *notes]))
        )
    if record.agreement:
        figures.append(
            KeyFigure("Agreement with QANN", percent(record.agreement[-1]), f"same prediction at t = {record.steps}")
        )
    if ended:
        if ended.t_eq_max is not None and ended.outcome != "STEP_LIMIT":
            mean = f"mean {ended.t_eq_mean:.2f}" if ended.t_eq_mean is not None else ""
            bound = f"bound {ended.bound}" if ended.bound is not None else ""
            figures.append(
                KeyFigure("T_eq, slowest image", plain(ended.t_eq_max), " · ".join(x for x in (mean, bound) if x))
            )
        else:
            figures.append(KeyFigure("T_eq", "not reached", f"after {counted(record.steps, 'step')} ({ended.outcome})"))
    per_image = [sum(layer.spikes) for layer in record.layers if layer.spikes]
    if per_image:
        neurons = sum(layer.neurons for layer in record.layers if layer.spikes) or 1
        figures.append(
            KeyFigure("Spikes per image", compact(sum(per_image)), f"{sum(per_image) / neurons:.3g} per neuron")
        )
    if record.energy:
        for model in record.energy.models[:1]:
            if model.qann_pj and model.snn_pj:
                ratio = model.snn_pj[-1] / model.qann_pj
                note = f"{energy(model.snn_pj[-1])} against {energy(model.qann_pj)} · {model.name}"
                others = [m.snn_pj[-1] / m.qann_pj for m in record.energy.models[1:] if m.qann_pj and m.snn_pj]
                if others:
                    note += f" · other models {min(others):.2g}–{max(others):.3g}×"
                figures.append(KeyFigure("Energy, SNN / QANN", f"{ratio:.3g}×", note))
    if record.synops:
        figures.append(
            KeyFigure("SynOps per image", compact(record.synops[-1]), f"over {counted(record.steps, 'step')}")
        )
    return figures


def energy_sentence(record: Record) -> str | None:
    """On what operations were counted, and how to read the ratios; nothing where energy was not measured."""
    if not record.energy or not record.energy.models:
        return None
    images = record.energy.images
    spent = f"Operations were counted step by step on {counted(images, 'image')}. " if images else ""
    return (
        f"{spent}SNN / QANN compares what the SNN has spent up to step t with what the QANN, with the same"
        " bits, spends on a whole answer: read it with the accuracy at that step."
    )


def audit_sentence(record: Record) -> str | None:
    """What the audit found, in a sentence."""
    audit = record.audit
    if audit is None:
        return None
    others = [r for r in audit.rows if not spikes_alone(r.input) and r.input != "analog input"]
    acs, macs = (sum(getattr(r, key) or 0 for r in audit.rows) for key in ("acs", "macs"))
    instead = sum(r.as_macs or 0 for r in audit.rows)
    names = ", ".join(r.name for r in others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
    verdict = (
        "Every synaptic operation but those on the analog input receives spikes alone."
        if not others
        else f"Not spikes alone: {names}."
    )
    return (
        f"{verdict} Stream by stream an image takes {compact(acs)} accumulates (AC) and {compact(macs)}"
        f" multiply-accumulates (MAC) in {counted(audit.steps, 'step')}; read as integers it would take"
        f" {compact(instead)} MACs (mean of {counted(audit.images, 'image')})."
    )


def exactness_sentence(record: Record) -> str | None:
    """Which sums are exact, in a sentence; nothing without a certificate."""
    rows = record.exactness or (record.certificate.exactness if record.certificate else ())
    if not rows:
        return None if record.network.weight_bits else "Weights are floating-point numbers: sums are rounded."
    kinds = {kind: sum(r.arithmetic == kind for r in rows) for kind in ("float32", "float64", "rounded", "inexact")}
    said = [f"{n} in {kind}" for kind, n in kinds.items() if n and kind in ("float32", "float64")]
    text = f"Of {len(rows)} operations, {sum(kinds[k] for k in ('float32', 'float64'))} add up exactly"
    text += f" ({', '.join(said)})" if said else ""
    text += f", {kinds['rounded']} are rounded to fixed point" if kinds["rounded"] else ""
    return text + (f", {kinds['inexact']} are not exact." if kinds["inexact"] else ".")


def _neuron(record: Record) -> str:
    slew = f"slew {plain(record.slew)}" if record.slew is not None else ""
    start = f"from {record.initial_code}" if record.initial_code not in (None, "0") else ""
    return " ".join(x for x in (record.neuron, slew, start) if x)


def provenance(record: Record) -> list[tuple[str, str]]:
    """What it takes to run it again."""
    data, network, encoding = record.data, record.network, record.encoding
    rows = [
        ("command", record.command),
        ("seed", None if record.seed is None else str(record.seed)),
        ("commit", record.commit),
        ("versions", ", ".join(f"{k} {v}" for k, v in record.versions.items())),
        ("processor", record.processor),
        ("created", record.created),
        (
            "data",
            data
            and " ".join(x for x in (data.name, data.split, f"({data.images:,} images)" if data.images else "") if x),
        ),
        ("network", _network(record)),
        ("residual", network.residual),
        ("fine-tuning", network.fine_tuning),
        ("neuron", _neuron(record)),
        (
            "encoding",
            encoding and f"{encoding.name}{f', T_off = {encoding.t_off}' if encoding.t_off is not None else ''}",
        ),
        ("engine", record.engine),
        ("steps", str(record.steps)),
    ]
    proof = record.certificate
    if proof:
        rows += [
            ("certificate: weights", proof.weights_sha256 and f"sha256 {proof.weights_sha256}"),
            ("certificate: seed", None if proof.seed is None else str(proof.seed)),
            ("certificate: versions", ", ".join(f"{k} {v}" for k, v in proof.versions.items())),
        ]
    return [(name, value or "not recorded") for name, value in rows if value or name in ("command", "seed", "commit")]


def _network(record: Record) -> str:
    part = record.network
    bits = f"{part.weight_bits}-bit weights" if part.weight_bits else ""
    counts = ((part.parameters, "parameters"), (part.neurons, "neurons"), (part.tracker_layers, "tracker layers"))
    return ", ".join([*(f"{compact(n)} {what}" for n, what in counts if n is not None), *([bits] if bits else [])])


def cautions(runs: Sequence[Run]) -> list[str]:
    """Why figures of these runs may not be comparable."""
    said = []
    data = {(run.record.data.name, run.record.data.split, run.record.data.images) for run in runs if run.record.data}
    if len(data) > 1:
        shown = sorted(" ".join(str(x) for x in d if x is not None) for d in data)
        said.append(f"The runs were measured on different data ({'; '.join(shown)}): accuracies are not comparable.")
    return said
