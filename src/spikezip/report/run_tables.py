"""The tables of a run, and the one that sets runs side by side."""

from __future__ import annotations

from collections.abc import Sequence

from spikezip.report.figures import Run
from spikezip.report.figures.maps import settled_step
from spikezip.report.schema import Layer, Record
from spikezip.report.summary import verdict
from spikezip.report.tables import Cell, Column, Table, compact, energy, percent


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
