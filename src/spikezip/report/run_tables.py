"""The tables of a run, and the one that sets runs side by side."""

from __future__ import annotations

from collections.abc import Sequence

from spikezip.report.figures import Run
from spikezip.report.figures.distributions import layer_unit
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
    units = [layer_unit(record, layer) for layer in record.layers]
    where = f" in the {record.compared_images}" if record.compared_images else ""
    columns = [
        Column("layer", numeric=False),
        Column("neurons"),
        Column("levels", numeric=False),
        *([Column("θ")] if None not in units else ()),
        Column("levels sent / image" if record.graded else "spikes / image", compact),
        Column("negative", percent),
        *([] if record.graded else [Column(f"sparsity, t ≤ {record.busy_steps}", percent)]),
        Column(f"settled at t{where}"),
        Column(f"codes differing at end{where}", percent),
    ]
    rows = []
    for layer, unit in zip(record.layers, units, strict=True):
        worth = [unit] if None not in units else []
        levels = f"{layer.lowest}..{layer.highest}"
        rows.append([layer.name, layer.neurons, levels, *worth, *_activity(layer, record)])
    return Table(f"Layers of {record.name}", columns, rows)


def layer_sentence(record: Record) -> str | None:
    """What the thresholds of an integer network mean, or why they are not shown; nothing for other networks."""
    if any(layer.unit is not None for layer in record.layers):
        return (
            "θ is what one level is worth in activation units, before integers were made; in the integer network"
            " itself every threshold is 1."
        )
    if record.layers and layer_unit(record, record.layers[0]) is None:
        return (
            "Thresholds are not shown: in an integer network they are all 1, and this record does not hold those that"
            " were divided out."
        )
    return None


def _activity(layer: Layer, record: Record) -> list[Cell]:
    total = sum(layer.spikes) if layer.spikes else None
    negative = sum(layer.negative) / total if total and layer.negative else None
    sparsity = 1 - sum(layer.rate) / record.busy_steps if layer.rate else None
    silent = [] if record.graded else [sparsity]
    return [total, negative, *silent, settled_step(layer), layer.differ[-1] if layer.differ else None]


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
            Column("covers", numeric=False),
            Column("source", numeric=False),
        ]
        rows: list[Sequence[Cell]] = []
        for model in record.energy.models:
            snn = model.snn_pj[-1] if model.snn_pj else None
            ratio = snn / model.qann_pj if snn is not None and model.qann_pj else None
            free = ", ".join(name.replace("_", " ") for name in model.unpriced)
            covers = " ".join(
                x for x in (model.about, f"Counted, but without a price in it: {free}." if free else "") if x
            )
            rows.append([model.name, snn, model.qann_pj, model.ann_pj, ratio, covers or None, model.source])
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
            Table(f"Energy per image by layer, {record.energy.models[0].name} (raw values in pJ)", columns, rows)
            if record.energy.models
            else Table("Operations per image by layer", columns, rows)
        )
    return tables


def ratio_table(record: Record) -> Table | None:
    """SNN / QANN at every step beside the accuracy at that step: neither says anything without the other."""
    models = [m for m in (record.energy.models if record.energy else ()) if m.qann_pj and m.snn_pj]
    if not models:
        return None
    accuracy = record.accuracy.snn if record.accuracy and record.accuracy.snn else None
    columns = [Column("t"), *([Column("accuracy", percent)] if accuracy else ())]
    columns += [Column("agreement", percent)] if record.agreement else []
    columns += [Column(model.name, _times) for model in models]
    rows: list[Sequence[Cell]] = []
    for t in range(1, record.steps + 1):
        shares = [series[t - 1] for series in (accuracy, record.agreement) if series]
        rows.append([t, *shares, *(m.snn_pj[t - 1] / (m.qann_pj or 1.0) for m in models)])
    last = record.settled.t_eq_max if record.settled else None
    if last and last + 1 < record.steps:
        rows = rows[: last + 1]  # nothing changes any more
    return Table("Energy, SNN / QANN, of a run stopped at step t", columns, rows)


def _times(value: Cell) -> str:
    return f"{value:.3g}×" if isinstance(value, (int, float)) else "–"


def audit_tables(record: Record) -> list[Table]:
    """Every synaptic operation with what it receives, and what that costs read as streams or as integers."""
    audit = record.audit
    if audit is None or not audit.rows:
        return []
    columns = [
        Column("operation", numeric=False),
        Column("op", numeric=False),
        Column("receives", numeric=False),
        Column("from", numeric=False),
        Column("synapses", compact),
        Column("ACs", compact),
        Column("MACs", compact),
        Column("MACs as integers", compact),
    ]
    rows: list[Sequence[Cell]] = []
    for row in audit.rows:
        more = f" and {len(row.streams) - 3} more" if len(row.streams) > 3 else ""
        sources = ", ".join(row.streams[:3]) + more
        rows.append([row.name, row.op, row.input, sources, row.synapses, row.acs, row.macs, row.as_macs])
    sums = [sum(getattr(row, key) or 0 for row in audit.rows) for key in ("synapses", "acs", "macs", "as_macs")]
    rows.append(["all", None, None, None, *sums])
    return [Table("Spike-driven audit, per image", columns, rows)]


def exactness_tables(record: Record) -> list[Table]:
    """Which sums are exact, and in what number format."""
    rows = record.exactness or (record.certificate.exactness if record.certificate else ())
    if not rows:
        return []
    words = {
        "float32": "yes: float32 holds every sum",
        "float64": "yes: float64 holds every sum",
        "rounded": "rounded to fixed point, alike in SNN and QANN",
        "inexact": "no: its sums are on no grid",
    }
    columns = [
        Column("operation", numeric=False),
        Column("op", numeric=False),
        Column("bits a sum may need"),
        Column("format", numeric=False),
        Column("exact", numeric=False),
    ]
    shown = [[r.name, r.op, r.bits, r.arithmetic, words.get(r.arithmetic, r.arithmetic)] for r in rows]
    return [Table("Which sums are exact, and in what number format", columns, shown)]


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
    made = {
        "encoding": [r.record.encoding.name if r.record.encoding else None for r in runs],
        "wiring": [r.record.network.residual for r in runs],
        "fine-tuning": [r.record.network.fine_tuning for r in runs],
    }
    differing = {name: values for name, values in made.items() if len(set(values)) > 1}
    columns = [
        Column("run", numeric=False),
        *(Column(name, numeric=False) for name in differing),
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
        Column("spike-driven", numeric=False),
        Column("steps"),
    ]
    words = {"equal": "yes", "unequal": "no", "unverified": "not verified"}
    rows: list[Sequence[Cell]] = []
    for i, run in enumerate(runs):
        record = run.record
        result, ended = record.accuracy, record.settled
        spikes = [sum(layer.spikes) for layer in record.layers if layer.spikes]
        rows.append(
            [
                run.title,
                *(values[i] for values in differing.values()),
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
                record.audit.spike_driven if record.audit else None,
                record.steps,
            ]
        )
    return Table("Runs compared", columns, rows)


def ratio_comparison(runs: Sequence[Run]) -> Table | None:
    """SNN / QANN of all runs, by energy model; None where no run was priced."""
    models = list(
        dict.fromkeys(m.name for r in runs if r.record.energy for m in r.record.energy.models if m.qann_pj and m.snn_pj)
    )
    if not models:
        return None
    columns = [Column("run", numeric=False), *(Column(name, _times) for name in models)]
    rows: list[Sequence[Cell]] = []
    for run in runs:
        energy = run.record.energy
        priced = {m.name: m for m in (energy.models if energy else ()) if m.qann_pj and m.snn_pj}
        ratios = [priced[m].snn_pj[-1] / (priced[m].qann_pj or 1.0) if m in priced else None for m in models]
        rows.append([run.title, *ratios])
    return Table("Energy at the last step, SNN / QANN", columns, rows)
