"""A run in words and figures: the verdict, the outcome, the key figures and the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spikezip.report.figures import Run
from spikezip.report.figures.maps import settled_step
from spikezip.report.record import CertificatePart, Layer, Record
from spikezip.report.tables import Cell, Column, Table, compact, energy, percent, plain

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


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


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
            " Run verify(snn, images) to find out.",
        )
    checked = f"on {_count(proof.images, 'image')}{f' with the {proof.engine} engine' if proof.engine else ''}"
    if not proof.equal:
        first = next((layer for layer in proof.layers if layer.mismatches), None)
        where = f", first in {first.name} ({_count(first.mismatches, 'code')})" if first else ""
        outputs = (
            ""
            if proof.outputs_equal is None
            else f" The outputs are {'equal' if proof.outputs_equal else 'not equal'}."
        )
        unsettled = " The network had not settled." if record.settled and record.settled.outcome == "STEP_LIMIT" else ""
        return Verdict(
            "unequal",
            "Not equal to the QANN",
            f"Checked {checked}: {_count(proof.mismatches, 'mismatch').replace('mismatchs', 'mismatches')}{where}."
            f"{outputs}{unsettled}",
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
        "Equal to the QANN",
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


def outcome(record: Record) -> str | None:
    """How the run ended, plainly; nothing where it settled."""
    ended = record.settled
    if ended is None:
        return "Whether the network settled was not recorded: figures at the last step may not be final."
    if ended.outcome == "STEP_LIMIT":
        return (
            f"The run stopped at its limit of {_count(record.steps, 'step')} before every neuron was silent"
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
            mean = f"mean {ended.t_eq_mean:.1f}" if ended.t_eq_mean is not None else ""
            bound = f"bound {ended.bound}" if ended.bound is not None else ""
            figures.append(
                KeyFigure("T_eq, slowest image", plain(ended.t_eq_max), " · ".join(x for x in (mean, bound) if x))
            )
        else:
            figures.append(KeyFigure("T_eq", "not reached", f"after {_count(record.steps, 'step')} ({ended.outcome})"))
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
                figures.append(KeyFigure("Energy, SNN / QANN", f"{ratio:.3g}×", note))
    if record.synops:
        figures.append(
            KeyFigure("SynOps per image", compact(record.synops[-1]), f"over {_count(record.steps, 'step')}")
        )
    return figures


def layer_tables(record: Record) -> list[Table]:
    """What is known of every layer, and of every layer's weights."""
    return [table for table in (layer_table(record), weight_table(record)) if table]


def layer_table(record: Record) -> Table | None:
    """Every layer in a row."""
    if not record.layers:
        return None
    synops = {x.name: x.synops[-1] for x in (record.energy.layers if record.energy else ()) if x.synops}
    columns = [
        Column("layer", numeric=False),
        Column("neurons"),
        Column("levels", numeric=False),
        Column("scale θ"),
        Column("spikes / image", compact),
        Column("negative", percent),
        Column("sparsity", percent),
        Column("settled at t"),
        Column("codes differing at end", percent),
    ]
    with_synops = any(layer.name in synops for layer in record.layers)
    if with_synops:
        columns.append(Column("SynOps / image", compact))
    rows = []
    for layer in record.layers:
        row = [layer.name, layer.neurons, f"{layer.lowest}..{layer.highest}", layer.scale, *_activity(layer)]
        rows.append([*row, synops.get(layer.name)] if with_synops else row)
    return Table(f"Layers of {record.name}", columns, rows)


def _activity(layer: Layer) -> list[Cell]:
    total = sum(layer.spikes) if layer.spikes else None
    negative = sum(layer.negative) / total if total and layer.negative else None
    sparsity = 1 - sum(layer.rate) / len(layer.rate) if layer.rate else None
    return [total, negative, sparsity, settled_step(layer), layer.differ[-1] if layer.differ else None]


def weight_table(record: Record) -> Table | None:
    """Range and bits of every layer's weights."""
    if not record.weights:
        return None
    columns = [Column("layer", numeric=False), Column("bits"), Column("least"), Column("greatest")]
    return Table(f"Weights of {record.name}", columns, [[w.name, w.bits, w.min, w.max] for w in record.weights])


def energy_tables(record: Record) -> list[Table]:
    """Energy by model, and synaptic operations by layer."""
    if not record.energy:
        return []
    tables = []
    if record.energy.models:
        columns = [
            Column("model", numeric=False),
            Column("SNN", energy),
            Column("QANN", energy),
            Column("ANN", energy),
            Column("SNN / QANN"),
            Column("source", numeric=False),
        ]
        rows: list[Sequence[Cell]] = []
        for model in record.energy.models:
            snn = model.snn_pj[-1] if model.snn_pj else None
            ratio = snn / model.qann_pj if snn is not None and model.qann_pj else None
            rows.append([model.name, snn, model.qann_pj, model.ann_pj, ratio, model.source])
        tables.append(Table(f"Energy per image at t = {record.steps} (raw values in pJ)", columns, rows))
    if record.energy.layers:
        columns = [
            Column("layer", numeric=False),
            Column("kind", numeric=False),
            Column("input", numeric=False),
            Column("SynOps", compact),
            Column("SNN", energy),
            Column("QANN", energy),
        ]
        rows = [
            [x.name, x.kind, x.input, x.synops[-1] if x.synops else None, x.snn_pj, x.qann_pj]
            for x in record.energy.layers
        ]
        tables.append(
            Table("Spike-driven audit: operations and energy per image by layer (raw values in pJ)", columns, rows)
        )
    return tables


def certificate_tables(record: Record) -> list[Table]:
    """The conditions of equality and the layers compared."""
    proof = record.certificate
    if proof is None:
        return []
    tables = []
    if proof.conditions:
        columns = [Column(name, numeric=False) for name in ("id", "condition", "holds", "evidence")]
        rows: list[Sequence[Cell]] = [
            [c.id, c.text, "not checked" if c.holds is None else c.holds, c.evidence] for c in proof.conditions
        ]
        tables.append(Table("Conditions of equality", columns, rows))
    if proof.layers:
        columns = [Column("layer", numeric=False), Column("codes checked"), Column("mismatches")]
        tables.append(
            Table(
                "Codes compared with the QANN's",
                columns,
                [[x.name, x.codes_checked, x.mismatches] for x in proof.layers],
            )
        )
    return tables


def provenance(record: Record) -> list[tuple[str, str]]:
    """What it takes to run it again."""
    data, network, encoding = record.data, record.network, record.encoding
    rows = [
        ("command", record.command),
        ("seed", None if record.seed is None else str(record.seed)),
        ("commit", record.commit),
        ("versions", ", ".join(f"{k} {v}" for k, v in record.versions.items())),
        ("created", record.created),
        (
            "data",
            data
            and " ".join(x for x in (data.name, data.split, f"({data.images:,} images)" if data.images else "") if x),
        ),
        ("network", _network(record)),
        ("residual", network.residual),
        ("fine-tuning", network.fine_tuning),
        (
            "neuron",
            " ".join(x for x in (record.neuron, f"slew {plain(record.slew)}" if record.slew is not None else "") if x),
        ),
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


def comparison(runs: Sequence[Run]) -> Table:
    """All runs side by side."""
    columns = [
        Column("run", numeric=False),
        Column("equal to QANN", numeric=False),
        Column("outcome", numeric=False),
        Column("SNN", percent),
        Column("QANN", percent),
        Column("ANN", percent),
        Column("agreement", percent),
        Column("T_eq mean"),
        Column("T_eq max"),
        Column("spikes / image", compact),
        Column("SynOps / image", compact),
        Column("energy SNN / QANN"),
        Column("steps"),
    ]
    words = {"equal": "yes", "unequal": "no", "unverified": "not verified"}
    rows: list[Sequence[Cell]] = []
    for run in runs:
        record = run.record
        result, ended = record.accuracy, record.settled
        model = record.energy.models[0] if record.energy and record.energy.models else None
        spikes = [sum(layer.spikes) for layer in record.layers if layer.spikes]
        rows.append(
            [
                run.title,
                words[verdict(record).sign],
                ended.outcome if ended else None,
                result.snn[-1] if result and result.snn else None,
                result.qann if result else None,
                result.ann if result else None,
                record.agreement[-1] if record.agreement else None,
                ended.t_eq_mean if ended else None,
                ended.t_eq_max if ended else None,
                sum(spikes) if spikes else None,
                record.synops[-1] if record.synops else None,
                model.snn_pj[-1] / model.qann_pj if model and model.qann_pj and model.snn_pj else None,
                record.steps,
            ]
        )
    return Table("Runs compared", columns, rows)


def cautions(runs: Sequence[Run]) -> list[str]:
    """Why figures of these runs may not be comparable."""
    said = []
    data = {(run.record.data.name, run.record.data.split, run.record.data.images) for run in runs if run.record.data}
    if len(data) > 1:
        shown = sorted(" ".join(str(x) for x in d if x is not None) for d in data)
        said.append(f"The runs were measured on different data ({'; '.join(shown)}): accuracies are not comparable.")
    models = {run.record.energy.models[0].name for run in runs if run.record.energy and run.record.energy.models}
    if len(models) > 1:
        said.append(f"The ratio SNN / QANN is of different energy models in the table ({', '.join(sorted(models))}).")
    return said
