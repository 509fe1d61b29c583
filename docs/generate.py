"""Pages that are made, not written: tables of results from experiments/results, the command line from its own help."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from spikezip.measure.work import OPERATIONS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"
STEPS = (1, 2, 4, 8, 16, 32)


def write_pages(folder: Path) -> None:
    """Write every generated page into ``folder``; a result that is not there gives a page that says so."""
    folder.mkdir(exist_ok=True)
    (folder / "cli.md").write_text(command_line())
    (folder / "fronts.md").write_text(fronts())
    (folder / "equal-cost.md").write_text(equal_cost())
    (folder / "operations.md").write_text(
        table(["name", "what is counted"], [[f"`{k}`", v] for k, v in OPERATIONS.items()])
    )
    for name, make in TABLES.items():
        path = RESULTS / f"{MADE_FROM.get(name, name)}.json"
        text = make(json.loads(path.read_text())) if path.exists() else f"*{path.name} has not been made yet.*\n"
        (folder / f"{name}.md").write_text(text)


def read(name: str) -> dict[str, Any]:
    """A result of ``experiments/results``."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def command_line() -> str:
    """Every verb's --help, as it is printed."""
    from typer.testing import CliRunner

    from spikezip.cli import app

    verbs = [verb.name for verb in app.registered_commands]
    pages = []
    for verb in [None, *verbs]:
        call = [] if verb is None else [verb]
        shown = CliRunner().invoke(app, [*call, "--help"], env={"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"})
        text = re.sub(r"\x1b\[[0-9;]*m", "", shown.output).strip("\n")
        pages.append(f"## spikezip{' ' + verb if verb else ''}\n\n```text\n{text}\n```\n")
    return "\n".join(pages)


def percent(value: float | None) -> str:
    """A share as a percentage with two digits; a dash for none."""
    return "–" if value is None else f"{100 * value:.2f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def provenance(result: dict[str, Any]) -> str:
    """One line on where numbers come from: the last command, and every commit of a row (``+``: changed)."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    rows = [row for value in result.values() if isinstance(value, list) for row in value if isinstance(row, dict)]
    commits = dict.fromkeys(row.get("commit", result["commit"]) for row in rows or [result])
    made = f"rows made at commits {', '.join(commits)}" if len(commits) > 1 else f"commit {next(iter(commits))}"
    return f"\n*`{result['command']}`, seed {result['seed']}, {versions}, {made}.*\n"


def resnet20(result: dict[str, Any]) -> str:
    """Accuracy at t of ResNet-20."""
    anns = list(dict.fromkeys(percent(run["ann"]) for run in result["runs"]))
    own = ["ANN"] if len(anns) > 1 else []
    head = ["network", *own, "QANN", *(f"t={t}" for t in STEPS), "T_eq max (bound)", "equal"]
    rows, said = [], []
    for run in result["runs"]:
        at = [percent(run["snn"][t - 1]) if t <= len(run["snn"]) else "–" for t in STEPS]
        settled = f"{run['t_eq']['t_eq_max']} ({run['t_eq']['bound']})"
        ann = [percent(run["ann"])] if own else []
        rows.append([run["name"], *ann, percent(run["qann"]), *at, settled, "yes" if run["equal"] else "**no**"])
        said.append(f"{run['codes_checked']:,} codes of {run['certified_images']:,} images")
    images = ", ".join(dict.fromkeys(f"{run['images']:,}" for run in result["runs"]))
    checked = "; ".join(dict.fromkeys(said))
    right = f"The ANN is right on {anns[0]} % of the {images} test images." if not own else f"Of {images} test images."
    told = f"{right} *equal*: certified on {checked}.\n\n"
    return told + table(head, rows) + provenance(result)


def published(data: str, network: str) -> list[list[str]]:
    """What others publish for a network: method, spike alphabet, hidden steps, ANN, no QANN, accuracy by ``STEPS``."""
    told = json.loads((ROOT / "experiments" / "anchors.json").read_text())["anchors"]
    rows = []
    for row in (r for r in told if (r["data"], r["network"]) == (data, network)):
        cells = [f"{row['at'][str(t)]:.2f}" if str(t) in row["at"] else "–" for t in STEPS]
        name = f"{row['method']} ({row['source']})"
        rows.append([name, row["spikes"], str(row["hidden_steps"]), str(row["ann"]), "–", *cells])
    return rows


def beside_published(result: dict[str, Any]) -> str:
    """ResNet-20's rows beside published ones: spike alphabet, hidden steps, accuracy at T, synaptic operations."""
    rows = [[*row, "–"] for row in published(result.get("data_set", "cifar10"), "ResNet-20")]
    for run in result["runs"]:
        cells = [percent(run["snn"][t - 1]) for t in STEPS]
        cost = " / ".join(f"{run['synops'][t - 1] / 1e6:.1f}" for t in (2, 4, 32)) if "synops" in run else "–"
        rows.append([run["name"], "ternary", "0", percent(run["ann"]), percent(run["qann"]), *cells, cost])
    head = ["method", "spikes", "hidden steps", "ANN", "QANN", *(f"T={t}" for t in STEPS), "SynOps (10⁶), T=2 / 4 / 32"]
    if all(row[-1] == "–" for row in rows):  # not counted for any
        head, rows = head[:-1], [row[:-1] for row in rows]
    return table(head, rows) + provenance(result)


def spread(figure: dict[str, Any], times: float = 100.0) -> str:
    """Mean over seeds, and standard deviation where there are several."""
    return f"{times * figure['mean']:.2f}" + (f" ± {times * figure['std']:.2f}" if figure["std"] is not None else "")


def over_seeds(variants: dict[str, Any]) -> str:
    """What :func:`spread` shows, in words."""
    seeds = max(row["seeds"] for row in variants.values())
    return "one seed" if seeds == 1 else f"mean ± standard deviation over {seeds} seeds"


def fronts() -> str:
    """Every network that experiments/front.py has trained; what others publish for it in the first table of each."""
    parts = []
    shown = set()
    for path in sorted(RESULTS.glob("front-*.json")):
        result = json.loads(path.read_text())
        said = result["settings"]
        known = {"resnet20": "ResNet-20", "resnet18": "ResNet-18", "vgg16": "VGG-16"}
        network = said["network"].partition(":")[2]
        subject = said["data"], known.get(network, network)
        others = [] if subject in shown else published(*subject)
        rows = [[*row[:9], "–", "–", "–", "–"] for row in others]
        shown.add(subject)
        early = {row["variant"]: cooldown for row in result["rows"] if (cooldown := row["lines"].get("cooldown"))}
        for name, row in result["variants"].items():
            cells = [spread(row[f"t{t}"]) for t in STEPS[:4]]
            cost = " / ".join(f"{row[f'synops_t{t}']['mean'] / 1e6:.2f}" for t in (1, 2, 4))
            cut_short = name in early and not name.endswith("its start")
            ended = f" (ended after {sum(early[name].values())})" if cut_short else ""
            rows.append(
                [
                    name + ended,
                    "ternary",
                    "0",
                    percent(result["ann"]),
                    spread(row["qann"]),
                    *cells,
                    spread(row["settled"]),
                    spread(row["t_eq"], 1),
                    cost,
                    "yes" if row["equal"] else "**no**",
                ]
            )
        head = ["network", "spikes", "hidden steps", "ANN", "QANN", *(f"T={t}" for t in STEPS[:4])]
        head += ["settled", "T_eq", "SynOps (10⁶), T=1 / 2 / 4", "SNN = QANN"]
        further = " more, from weights that were kept" if said.get("start") else ""
        if said.get("start_of"):
            product, factor = said["start_of"]
            further += f" *{product}*, their step sizes times {factor}"
        if said.get("live"):
            further += ", BatchNorm live"
        if said.get("refit"):
            further += ", from refitted weights"
        if said.get("mixed"):
            further += ", on mixtures of two images"
        teacher = f", teacher {said['teacher']}" if said.get("teacher") else ""
        images = " on all training images" if said.get("train_split") == "trainval" else ""
        decays = {decay for row in result["rows"] if (decay := row["lines"].get("ema"))}
        averaged = "".join(f", moving average of the weights ({decay:g})" for decay in decays)
        told = (
            f"**{network} on {said['data']}** (`{path.name}`): each trained for {said['epochs']} epochs{further}"
            f"{images}, batch {said['batch']}, AdamW {said['rate']:g}{averaged}{teacher}; "
            f"{over_seeds(result['variants'])}."
        )
        parts.append(f"{told}\n\n{table(head, rows)}{provenance(result)}")
    return "\n".join(parts) or "*experiments/front.py has not been run yet.*\n"


#: What experiments/front.py has trained at one cost, 8 levels, released evenly: the end of a file's name, the variant.
EQUAL_COST = {"QAT": "-N (plain QAT)", "PET": "-P (PET, rescaled 2, 4)", "QAT-RCR": "-R (RCR)", "PET-RCR": "-PR"}


def equal_cost() -> str:
    """The variants that have been trained at one cost."""
    accuracies, costs = ("t1", "t2", "t4", "t8", "settled"), ("synops_t4", "synops", "spikes")
    rows, made = [], []
    for ending, variant in EQUAL_COST.items():
        result = read(f"front-cifar10-resnet20-{ending}")
        (row,) = result["variants"].values()
        accuracy, cost = [spread(row[key]) for key in accuracies], [spread(row[key], 1e-6) for key in costs]
        how = [spread(row["t_eq"], 1), *cost, "yes" if row["equal"] else "**no**"]
        rows.append([variant, str(result["settings"]["epochs"]), str(row["seeds"]), *accuracy, *how])
        made.append(provenance(result))
    head = ["variant", "epochs", "seeds", *(f"t={t}" for t in STEPS[:4]), "settled", "T_eq", "SynOps by t=4 (10⁶)"]
    return table([*head, "by T_eq", "spikes (10⁶)", "SNN = QANN"], rows) + "".join(made)


def short_table(result: dict[str, Any]) -> str:
    """The README's table: a few steps of each run; of those trained for the same step, the best."""
    steps = (1, 2, 4, 8, 16)
    rows = []
    best: dict[str, dict[str, Any]] = {}
    for run in result["runs"]:
        of = re.match(r"trajectory for t=(\d+)", run["name"])
        key, at = (of[0], int(of[1]) - 1) if of else (run["name"], 0)
        if key not in best or run["snn"][at] > best[key]["snn"][at]:
            best[key] = run
    for run in best.values():
        at = [percent(run["snn"][t - 1]) for t in steps]
        equal = f"{'yes' if run['equal'] else 'no'}, {run['certified_images']:,} images"
        ends = [percent(run["qann"]), str(run["t_eq"]["t_eq_max"]), equal]
        rows.append([run["name"], percent(run["ann"]), *at, *ends])
    return table(["ResNet-20, CIFAR-10", "ANN", *(f"t={t}" for t in steps), "QANN", "T_eq", "SNN = QANN"], rows)


def short_equal_cost() -> str:
    """The README's table of plain QAT, PET and RCR."""
    rows = []
    for ending, variant in EQUAL_COST.items():
        (row,) = read(f"front-cifar10-resnet20-{ending}")["variants"].values()
        rows.append([variant, *(spread(row[key]) for key in ("t1", "t2", "t4", "settled"))])
    return table(["at equal cost, three seeds", "t=1", "t=2", "t=4", "settled"], rows)


def zoo(result: dict[str, Any]) -> str:
    """Which published networks convert."""
    kinds = ("float32", "float64", "rounded", "inexact")
    rows = result["models"]
    converted = [row for row in rows.values() if "sound" in row]
    sums = ", ".join(f"{sum(row['exactness'].get(kind, 0) for row in converted)} {kind}" for kind in kinds)
    lines = []
    for name, row in rows.items():
        if "sound" not in row:
            why = " ".join(str(row.get("refused") or row.get("crashed")).split())
            lines.append([name, "", "", "", "", "", "no", why])
            continue
        numbers = [f"{row[key]:,}" for key in ("parameters", "neurons", "layers", "t_eq", "bound")]
        counts = " / ".join(str(row["exactness"].get(kind, 0)) for kind in kinds)
        by = ", by events" if row.get("engine") == "event" else ""
        lines.append([name, *numbers, f"yes{by}" if row["sound"] else "**no**", counts])
    head = ["model", "parameters", "neurons", "layers", "T_eq", "bound", "equal", " / ".join(kinds)]
    equal = sum(row["sound"] for row in converted)
    told = f"{len(converted)} of {len(rows)} convert, {equal} of these are equal; sums: {sums}.\n\n"
    return told + table(head, lines) + provenance(result)


def probes(result: dict[str, Any]) -> str:
    """What a few optimizer steps of trajectory training gave."""
    rows = [
        [name, percent(row["validation"]["accuracy/t1"]), percent(row["validation"]["accuracy/t2"])]
        for name, row in result["probes"].items()
    ]
    return table(["setting (others as in the first row)", "t=1", "t=2"], rows) + provenance(result)


def refit(result: dict[str, Any]) -> str:
    """What refitted weights gain without training."""
    head = ["data", "network", "blocks", "levels", "calibration images", "ANN", "QANN", "QANN, refitted"]
    head += ["seconds", "refitted"]
    rows = [
        [
            {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}[row["data_set"]],
            row["network"].replace("resnet", "ResNet-"),
            {"rcr": "RCR", "ms": "MS"}.get(row.get("residual"), "as trained"),
            str(row["levels"]),
            str(row["calibration"]),
            *(percent(row[name]) for name in ("ann", "plain", "refitted")),
            *(f"{row[name]:.1f}" for name in ("plain_seconds", "refitted_seconds")),
        ]
        for row in result["rows"]
    ]
    return table(head, rows) + provenance(result)


def weight_bits(result: dict[str, Any]) -> str:
    """What rounding weights in order gains where they have few bits."""
    head = ["ResNet-20", "bits of the weights", "floats", "nearest steps", "in order", "seconds", "in order"]
    head += ["file (kB)", "of floats"]
    rows = [
        [
            row["case"],
            str(row["bits"]),
            *(percent(row[name]) for name in ("floats", "nearest", "in order")),
            *(f"{row[name]:.1f}" for name in ("nearest seconds", "in order seconds")),
            *(f"{row[name] / 1000:.0f}" for name in ("bytes", "floats bytes")),
        ]
        for row in result["rows"]
    ]
    return table(head, rows) + provenance(result)


def detection(result: dict[str, Any]) -> str:
    """Mean average precision of detectors at each step, and what a run costs."""
    steps = [t for t in result["rows"][0]["at"] if t != "settled"]
    rows, costs = [], []
    for row in result["rows"]:
        name = [row["network"], str(row["levels"])]
        rows.append([*name, *(f"{100 * row[key]:.1f}" for key in ("ann", "qann"))])
        rows[-1] += [f"{100 * value:.1f}" for value in row["at"].values()] + ["yes" if row["equal"] else "**no**"]
        settled = row["settled"]
        ends = f"{row['t_eq']['mean']:.1f} ({row['t_eq']['max']})"
        sums = [_million(settled["spikes"]), _million(settled["synops"], 0), _million(row["macs"], 0)]
        costs.append([*name, ends, *sums])
    head = ["detector", "levels", "ANN", "QANN", *(f"t={t}" for t in steps), "settled", "equal"]
    beside = ["detector", "levels", "T_eq (most)", "spikes (10⁶)", "SynOps (10⁶)", "MACs of the QANN (10⁶)"]
    return table(head, rows) + "\n" + table(beside, costs) + provenance(result)


def sst2(result: dict[str, Any]) -> str:
    """Accuracy on sentences at each step, over seeds."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        groups.setdefault(row["levels"], []).append(row)
    steps = list(result["rows"][0]["at"])
    rows = []
    for levels, found in sorted(groups.items()):
        columns = [[row["ann"] for row in found], [row["qann"] for row in found]]
        columns += [[row["at"][t] for row in found] for t in steps]
        equal = "yes" if all(row["equal"] for row in found) else "**no**"
        ends = f"{mean(row['t_eq']['mean'] for row in found):.1f}"
        rows.append([str(levels), *map(_over_seeds, columns), equal, ends])
    head = ["levels", "ANN", "QANN", *(t if t == "settled" else f"t={t}" for t in steps), "equal", "T_eq"]
    seeds = len({row["seed"] for row in result["rows"]})
    return f"Percent right of 872 sentences; trainings: {seeds}.\n\n" + table(head, rows) + provenance(result)


def _over_seeds(values: list[float]) -> str:
    return spread({"mean": mean(values), "std": stdev(values) if len(values) > 1 else None})


ENERGY_STEPS = (1, 2, 4, 6, 8, 12, 16, 32)
#: Models whose ratios are shown at every step; the results hold all.
RATIOS_SHOWN = ("lemaire-2022", "horowitz-45nm-int8", "memory-45nm-int8")


def energy(result: dict[str, Any]) -> str:
    """What the published ResNet-20 costs in each wiring, and what each of its operations receives."""
    runs = result["runs"]
    head = ["wiring", "QANN (%)", "settled (%)", "equal", "neuron layers", "T_eq max", "bound", "SynOps (10⁶)"]
    beside = []
    for run in runs:
        equal = f"{'yes' if run['equal'] else 'no'}, {run['certified_images']:,} images"
        numbers = [run["neuron_layers"], run["t_eq"]["max"], run["bound"]]
        accuracy = [f"{100 * value:.1f}" for value in (run["qann"], run["accuracy"][-1])]
        beside.append([run["name"], *accuracy, equal, *map(str, numbers), _million(run["synops"][-1], 1)])
    ratios = [{row["model"]: row["ratio"] for row in run["energy"] if row["ratio"]} for run in runs]
    shown = {
        "Accuracy (%)": [[f"{100 * share:.1f}" for share in run["accuracy"]] for run in runs],
        "SynOps (10⁶)": [[_million(count, 1) for count in run["synops"]] for run in runs],
        **{
            f"Energy, SNN / QANN, `{model}`": [[f"{ratio:.2f}" for ratio in found[model]] for found in ratios]
            for model in RATIOS_SHOWN
        },
    }
    steps = [
        f"**{what}**\n\n"
        + table(
            ["wiring", *(f"t={t}" for t in ENERGY_STEPS)],
            [[run["name"], *(row[t - 1] for t in ENERGY_STEPS)] for run, row in zip(runs, rows, strict=True)],
        )
        for what, rows in shown.items()
    ]
    settled = [
        [run["name"], *(f"{ratio[-1]:.2f}" for ratio in found.values())]
        for run, found in zip(runs, ratios, strict=True)
    ]
    names = [run["name"] for run in runs]
    received, done = [], []
    for rows in zip(*(run["audit"]["rows"] for run in runs), strict=True):
        received.append([rows[0]["name"], *(row["input"] for row in rows)])
        done.append([rows[0]["name"], _million(rows[0]["synapses"]), *(_done(row) for row in rows)])
    totals = [{k: sum(row[k] for row in run["audit"]["rows"]) for k in ("acs", "macs", "as_macs")} for run in runs]
    synapses = sum(row["synapses"] for row in runs[0]["audit"]["rows"])
    done.append(["all", _million(synapses), *map(_done, totals)])
    done.append(["all, read as integers", "", *(f"{_million(total['as_macs'])} M" for total in totals)])
    return (
        table(head, beside)
        + "\n"
        + "\n".join(steps)
        + "\nEnergy of the settled run, SNN / QANN, by every model:\n\n"
        + table(["wiring", *(f"`{model}`" for model in ratios[0])], settled)
        + "\nWhat each operation receives:\n\n"
        + table(["operation", *names], received)
        + "\nWhat it does over 32 steps, 10⁶ an image: ACs, and MACs (M); its synapses are the QANN's MACs:\n\n"
        + table(["operation", "synapses", *names], done)
        + provenance(result)
    )


def finetuned(result: dict[str, Any]) -> str:
    """The wirings after the same fine-tuning."""
    head = ["wiring", "QANN (%)", *(f"t={t} (%)" for t in (4, 8, 16)), "T_eq max", "equal"]
    head += ["SynOps (10⁶)"]
    priced = [row["model"] for row in result["runs"][0]["energy"] if row["ratio"]]
    rows, ratios = [], []
    for run in result["runs"]:
        accuracy = [run["qann"], *(run["accuracy"][t - 1] for t in (4, 8, 16))]
        equal = f"{'yes' if run['equal'] else 'no'}, {run['certified_images']:,} images"
        cells = [f"{100 * value:.1f}" for value in accuracy]
        rows.append([run["name"], *cells, str(run["t_eq"]["max"]), equal, _million(run["synops"][-1], 1)])
        ratios.append([run["name"], *(f"{row['ratio'][-1]:.2f}" for row in run["energy"] if row["ratio"])])
    first, given = result["runs"][0], result["finetune"]
    told = (
        f"{given['images']:,} training images each ({given['steps']} steps of {given['batch']}), AdamW at"
        f" {given['rate']:g}, the ANN as teacher; accuracy on {first['accuracy_images']:,} test images, operations"
        f" counted on {first['images']}:\n\n"
    )
    spent = "\nEnergy of the settled run, SNN / QANN:\n\n" + table(["wiring", *priced], ratios)
    return told + table(head, rows) + spent + provenance(result)


def _done(row: dict[str, Any]) -> str:
    """ACs, and MACs where there are any."""
    parts = [_million(row["acs"]) if row["acs"] else "", f"{_million(row['macs'])} M" if row["macs"] else ""]
    return " + ".join(filter(None, parts)) or "0"


def _million(number: float, digits: int = 2) -> str:
    return f"{number / 1e6:.{digits}f}"


def _times(row: dict[str, Any]) -> str:
    return f"{row['ann_forwards']:.1f} ({row['least']:.1f}–{row['most']:.1f})"


def _by_processor(result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Runs of each processor, the one that was measured last first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in result["runs"]:
        found.setdefault(run["processor"], []).append(run)
    return dict(sorted(found.items(), key=lambda item: max(run["created"] for run in item[1]), reverse=True))


def _each_processor(result: dict[str, Any], made: Callable[[list[dict[str, Any]]], str]) -> str:
    """A table for each processor, with where its numbers come from."""
    parts = []
    for processor, runs in _by_processor(result).items():
        whence: dict[str, list[str]] = {}
        for run in runs:
            whence.setdefault(provenance(run), []).append(run["model"] + ("" if run["weight_bits"] else ", float"))
        told = "".join(f"\n{'; '.join(models)}: {line.strip()}\n" for line, models in whence.items())
        parts.append(f"**{processor}**\n\n{made(runs)}{told if len(whence) > 1 else provenance(runs[-1])}")
    return "\n".join(parts)


def rivals(result: dict[str, Any]) -> str:
    """Whole runs of the sweep beside other ways to run the same network, in ANN forwards."""
    return _each_processor(result, _rivals)


def _rivals(runs: list[dict[str, Any]]) -> str:
    rows = []
    for run in runs:
        found = {(row["engine"], row["steps"]): row for row in run["settings"][0]["rows"]}
        for steps in sorted({steps for _, steps in found}):
            ours = found["sweep", steps]
            cells = [run["model"], str(steps), _times(ours)]
            for engine in ("plain loop", "spikingjelly step", "spikingjelly multi-step"):
                row = found.get((engine, steps))
                cells.append(f"{_times(row)}: {row['ann_forwards'] / ours['ann_forwards']:.1f} x" if row else "–")
            rows.append(cells)
    head = ["network", "T", "sweep", "SpikeZIP-TF's loop", "SpikingJelly, step", "SpikingJelly, multi-step"]
    setting = runs[0]["settings"][0]
    told = f"8-bit weights, {setting['levels']} levels, batch {setting['batch']}, one thread:\n\n"
    return told + table(head, rows)


def gains(result: dict[str, Any]) -> str:
    """Whole runs with and without the event-driven kernel, in ANN forwards."""
    return _each_processor(result, _gains)


def _gains(runs: list[dict[str, Any]]) -> str:
    rows = []
    for run in runs:
        for setting in run["settings"]:
            found = {(row["engine"], row["steps"]): row for row in setting["rows"]}
            active = f"{100 * setting['active_units']:.0f} %"
            for steps in sorted({steps for _, steps in found}):
                with_events, without = found["sweep", steps], found["dense sweep", steps]
                times = f"{without['ann_forwards'] / with_events['ann_forwards']:.2f} x"
                cells = [run["model"], str(setting["batch"]), active, str(steps)]
                rows.append([*cells, _times(with_events), _times(without), times])
    head = ["network", "batch", "active units", "T", "sweep", "without events", "gain"]
    return table(head, rows)


def sweeps(result: dict[str, Any]) -> str:
    """Whole runs of the sweep, one thing varied at a time, in ANN forwards."""
    return _each_processor(result, _sweeps)


def _sweeps(runs: list[dict[str, Any]]) -> str:
    every = sorted({row["steps"] for run in runs for s in run["settings"] for row in s["rows"]})
    rows = []
    for run in runs:
        for setting in run["settings"]:
            found = {row["steps"]: row for row in setting["rows"]}
            bits = f"{run['weight_bits']}-bit" if run["weight_bits"] else "float"
            wide, active = f"{setting['width']:g}", f"{100 * setting['active_units']:.0f} %"
            cells = [run["model"], bits, str(setting["levels"]), str(setting["batch"]), wide, active]
            cells += [_times(found[steps]) if steps in found else "–" for steps in every]
            peak = max(row["peak_mib"] for row in setting["rows"])
            rows.append([*cells, f"{peak:.0f} / {setting['ann_peak_mib']:.0f}"])
    head = ["network", "weights", "levels", "batch", "width", "active units", *(f"T={t}" for t in every)]
    return table([*head, "peak MiB, SNN / ANN"], rows)


def others(result: dict[str, Any]) -> str:
    """A transformer to its end, and the sweep without what is compiled, in ANN forwards."""
    return _each_processor(result, _others)


def _others(runs: list[dict[str, Any]]) -> str:
    rows = []
    for run in runs:
        for setting in run["settings"]:
            for row in setting["rows"]:
                ends = min(row["steps"], setting["settled_at"][1])
                each = f"{row['ann_forwards'] / ends:.2f}"
                rows.append([run["model"], str(setting["batch"]), row["engine"], str(ends), _times(row), each])
    return table(["network", "batch", "way", "steps run", "ANN forwards", "a step"], rows)


def threads(result: dict[str, Any]) -> str:
    """Whole runs with one thread and with more: in ANN forwards of as many threads, and against one thread."""
    return _each_processor(result, _threads)


def _threads(runs: list[dict[str, Any]]) -> str:
    one = {s["batch"]: s["rows"][0]["seconds"] for run in runs if run["threads"] == 1 for s in run["settings"]}
    rows = []
    for run in sorted(runs, key=lambda run: run["threads"]):
        for setting in run["settings"]:
            row, batch = setting["rows"][0], setting["batch"]
            faster = f"{one[batch] / row['seconds']:.2f} x" if batch in one else "–"
            rows.append([run["model"], str(run["threads"]), str(batch), str(row["steps"]), _times(row), faster])
    return table(["network", "threads", "batch", "T", "ANN forwards", "faster than one thread"], rows)


def memory(result: dict[str, Any]) -> str:
    """The most memory of a whole run and of one ANN forward, and what the first runs leave, in MiB."""

    def both(found: dict[str, float]) -> list[str]:
        return [f"{found['snn']:.0f} / {found['ann']:.0f}", f"{found['snn'] / found['ann']:.1f} x"]

    rows = []
    for row in result["rows"]:
        alone = row["own pages"]
        weights = f"{alone['kept']:.0f} / {alone['ann_weights']:.0f}"
        setting = [row["network"], str(row["batch"]), f"{row['width']:g}"]
        rows.append([*setting, *both(alone), *both(row["heap"]), weights])
    head = ["network", "batch", "width", "in use, SNN / ANN", "", "with the heap's gaps", "", "kept / ANN's weights"]
    return f"{result['processor']}, MiB:\n\n" + table(head, rows) + provenance(result)


def training(result: dict[str, Any]) -> str:
    """A training step, in steps of the plain ANN."""
    rows = []
    for row in result["rows"]:
        memory = f"{row['memory']:.2f}" if row["memory"] else "–"
        time = f"{row['steps']:.2f} ({row['least']:.2f}–{row['most']:.2f})"
        facts = [row["model"], str(row["batch"]), row["what"], row["device"], str(row["rounds"])]
        rows.append([*facts, time, memory, row["commit"]])
    head = ["network", "batch", "what", "on", "timings", "time, ANN steps", "memory, ANN's", "commit"]
    return table(head, rows) + provenance(result)


def on_gpu(result: dict[str, Any]) -> str:
    """Whole runs on a GPU, in forward passes; the unit's own time beside."""
    rows, said = [], []
    for row in result["rows"]:
        for way, times in row["runs"].items():
            cells = [
                f"{times[unit]['median']:.1f} ({times[unit]['least']:.1f}–{times[unit]['most']:.1f})"
                for unit in ("ann", "ann_tf32", "qann")
            ]
            facts = [row["network"], str(row["batch"]), str(row["steps"]), way]
            rows.append([*facts, *cells, f"{times['peak_mib']:,.0f}"])
        unit = " / ".join(f"{1000 * row['seconds'][name]:.1f}" for name in ("ann", "ann_tf32", "qann"))
        equal = "the same bits as the reference on a CPU" if row["equal"] else "**not the reference's bits**"
        said.append(f"{row['network']}: {unit} ms, {equal}, commit {row['commit']}")
    head = ["network", "batch", "T", "way", "ANN, float32", "ANN, TF32", "QANN", "MiB"]
    devices = ", ".join(dict.fromkeys(row["device"] for row in result["rows"]))
    told = f"{devices}; forward passes of ANN in float32 / TF32 / QANN, and the sweep: {'; '.join(said)}."
    return f"{told}\n\n{table(head, rows)}{provenance(result)}"


def mutation(result: dict[str, Any]) -> str:
    """How many small changes of the code the tests notice, and those that they do not."""
    rows, left = [], []
    every = result["mutants"]
    for module in sorted({row["module"] for row in every.values()}):
        outcomes = [row["outcome"] for row in every.values() if row["module"] == module]
        alive = [key for key, row in every.items() if row["module"] == module and row["outcome"] == "survived"]
        rows.append([f"`{module}`", str(len(outcomes)), str(len(outcomes) - len(alive)), str(len(alive))])
        for key in alive:
            change = every[key]["change"].replace("\n", "\n  ")
            left.append(f"- `{key}`\n\n  ```diff\n  {change}\n  ```")
    told = table(["module", "mutants", "killed", "survived"], rows)
    return told + ("\nSurvivors:\n\n" + "\n".join(left) + "\n" if left else "") + provenance(result)


def short_rivals(result: dict[str, Any]) -> str:
    """The README's table of speed: a whole run in ANN forwards."""
    names = ("sweep", "plain loop", "spikingjelly step", "spikingjelly multi-step")
    rows = []
    for run in next(iter(_by_processor(result).values())):
        found = {(row["engine"], row["steps"]): row["ann_forwards"] for row in run["settings"][0]["rows"]}
        for steps in (8, 16, 32):
            rows.append([f"{run['model']}, T={steps}", *(f"{found[name, steps]:.1f}" for name in names)])
    rivals = ["SpikeZIP-TF's loop", "SpikingJelly 2.0, step", "SpikingJelly 2.0, multi-step"]
    processor = next(iter(_by_processor(result)))
    return table([f"whole run, in ANN forwards ({processor})", "spikezip", *rivals], rows)


LIBRARIES = {
    "torchvision": "images, masks, optical flow, films",
    "timm": "images, vision transformers among them",
    "transformers": "images, masks, films, sounds, series, sentences: BERT, Llama, Mamba, Wav2Vec2, SegFormer, ...",
}


def short_zoo(result: dict[str, Any]) -> str:
    """The README's count of the zoo, by library."""
    rows = []
    for library, kinds in LIBRARIES.items():
        found = [row for name, row in result["models"].items() if name.startswith(f"{library}:")]
        counts = [len(found), sum("sound" in row for row in found), sum(row.get("sound", False) for row in found)]
        rows.append([f"{library}: {kinds}", *map(str, counts)])
    return table(["published models, made small, random weights", "tried", "convert", "equal to their QANN"], rows)


def early_exit(result: dict[str, Any]) -> str:
    """What leaving early gives on the test images, with thresholds of validation images."""
    head = ["network", "rule", "may lose", "threshold", "mean step", "accuracy (%)", "spikes (10³)", "fixed T"]
    rows, timed = [], []
    for net in result["networks"]:
        last = net["fixed"][-1]["t"]
        end = "settled" if net["settled"]["mean_step"] < last else f"none: t = {last}"
        for row in [{"rule": end, **net["settled"]}, *net["chosen"]]:
            least = next((str(p["t"]) for p in net["fixed"] if p["accuracy"] >= row["accuracy"]), "–")
            lost = row.get("lost_on_validation")
            cells = ["–", "–"] if lost is None else [f"{100 * lost:.1f}", f"{row['threshold']:.5f}"]
            cells += [f"{row['mean_step']:.2f}", percent(row["accuracy"]), f"{row['spikes'] / 1e3:.1f}", least]
            rows.append([net["name"], row["rule"], *cells])
        run = net["engine"]
        seconds = [f"{run[f'seconds_{way}']:.1f}" for way in ("until_settled", "with_early_exit")]
        same = "yes" if run["same_exit_steps"] else "**no**"
        timed.append([net["name"], str(run["images"]), f"{run['threshold']:.5f}", same, *seconds])
    ends = ["network", "images", "margin", "same exit steps", "s, until settled", "s, early exit"]
    told = "\nRun again with the rule in the engine (single runs on a shared machine):\n\n"
    commits = ", ".join(f"{net['name']}: {net['commit']}" for net in result["networks"])
    return table(head, rows) + told + table(ends, timed) + f"\n*Commits: {commits}.*\n" + provenance(result)


IN_README: dict[str, Callable[[], str]] = {
    "accuracy": lambda: short_table(read("cifar10-resnet20")),
    "equal cost": short_equal_cost,
    "zoo": lambda: short_zoo(read("zoo")),
    "speed": lambda: short_rivals(read("speed-rivals")),
}


def readme(text: str) -> str:
    """The README with its tables made anew from the results."""
    for name, make in IN_README.items():
        begin, end = f"<!-- {name}: made by docs/generate.py -->\n", "<!-- end -->\n"
        head, _, rest = text.partition(begin)
        text = f"{head}{begin}{make()}{end}{rest.partition(end)[2]}"
    return text


def nir(result: dict[str, Any]) -> str:
    """Networks in NIR."""
    head = ["network", "images", "steps", "spikes", "differing", "answers off by", "in nirtorch", "nodes", "MiB"]
    rows = [
        [
            row["network"],
            str(row["images"]),
            str(row["steps"]),
            f"{row['spikes']:,}",
            f"{row['differing']:,}",
            f"{row['answers_off_by']:.2g}",
            f"{row['answers_off_by_in_nirtorch']:.2g}",
            str(row["nodes"]),
            f"{row['mebibytes']:.1f}",
        ]
        for row in result["rows"]
    ]
    return table(head, rows) + provenance(result)


def neurons(result: dict[str, Any]) -> str:
    """The same QANN with other neurons."""
    steps = result["steps"]
    head = ["neuron", *(f"t={t}" for t in steps), "wrong codes (%)", "spikes (10³)", "SynOps (10³)"]
    parts = []
    for run in result["results"]:
        rows = []
        for row in run["neurons"]:
            ends = [percent(row["differ"][-1]), f"{row['spikes'][-1] / 1e3:.1f}", f"{row['synops'][-1] / 1e3:,.0f}"]
            rows.append([row["neuron"], *(percent(a) for a in row["accuracy"]), *ends])
        told = f"{run['network']}, {run['encoding']}: {run['images']:,} test images, QANN {percent(run['qann'])}"
        parts.append(f"**{told}**\n\n{table(head, rows)}")
    return "\n".join(parts) + provenance(result)


def ablation(result: dict[str, Any]) -> str:
    """What each part of fine-tuning adds, mean and standard deviation over seeds."""
    said, variants = result["settings"], result["variants"]

    steps = [key for key in next(iter(variants.values())) if key[0] == "t" and key[1:].isdigit()]
    rows = []
    for name, row in variants.items():
        accuracy = [spread(row[key]) for key in (*steps, "settled", "qann")]
        rows.append(
            [name, *accuracy, spread(row["t_eq"], 1), spread(row["synops"], 1e-3), "yes" if row["equal"] else "**no**"]
        )
    head = ["variant", *(f"t={key[1:]}" for key in steps), "settled", "QANN", "T_eq", "SynOps (10³)", "equal"]
    counted = "images through the network" if said["equal"] == "passes" else "images"
    told = (
        f"{said['network']} on {said['data']}, {said['levels']} levels, {said['encoding']}, 8-bit weights; budget "
        f"{said['epochs']} × {said['images']:,} {counted}, AdamW {said['rate']:g}, batch {said['batch']}; "
        f"{over_seeds(variants)}; accuracy in percent"
        + (f" on {said['test_images']:,} test images" if said["test_images"] else "")
        + ":\n\n"
    )
    return told + table(head, rows) + provenance(result)


def initial_codes(result: dict[str, Any]) -> str:
    """What a start at code 1 is worth: the answer at the step that was trained for, and what it costs until then."""
    said, variants = result["settings"], result["variants"]
    rows = []
    for name, row in variants.items():
        steps, start, encoding = name.split(", ")
        at = steps.removeprefix("T=")
        accuracy = [spread(row[key]) for key in (f"t{at}", "qann")]
        cost = [spread(row["t_eq"], 1), spread(row[f"synops_t{at}"], 1e-3)]
        rows.append([at, start.removeprefix("from "), encoding, *accuracy, *cost, "yes" if row["equal"] else "**no**"])
    rows.sort(key=lambda row: int(row[0]))
    head = ["T", "start", "encoding", "at t = T", "QANN", "T_eq", "SynOps by T (10³)", "equal"]
    told = (
        f"{said['network']} on {said['data']}, MS blocks, codes from 0 to what T steps reach, 8-bit weights; "
        f"{said['epochs']} × {said['images']:,} images, AdamW {said['rate']:g}, batch {said['batch']}; "
        f"{over_seeds(variants)}; accuracy in percent on the first {said['test_images']:,} test images, or all:\n\n"
    )
    return told + table(head, rows) + provenance(result)


def first_steps(result: dict[str, Any]) -> str:
    """SNNs for few steps without training."""
    said, variants = result["settings"], result["variants"]
    lines = {row["variant"]: row["lines"] for row in result["rows"]}
    rows = []
    for name, row in variants.items():
        weights = lines[name]["fit_steps"]
        fitted = "settled" if weights is None else ", ".join(f"t = {t}" for t, w in enumerate(weights, 1) if w)
        blocks = {"rcr": "RCR", "ms": "MS"}.get(lines[name]["residual"], "as trained")
        accuracy = [spread(row[key]) for key in ("t1", "t2", "t4", "settled")]
        cost = [spread(row["synops_t2"], 1e-6), f"{row['processor_seconds']['mean']:.0f}"]
        codes = f"0..{lines[name]['highest']}"
        rows.append([fitted, blocks, codes, *accuracy, *cost, "yes" if row["equal"] else "**no**"])
    head = ["fitted for", "blocks", "codes", "t=1", "t=2", "t=4", "settled", "SynOps by t=2 (10⁶)", "seconds", "equal"]
    tried = f"the first {said['test_images']:,}" if said["test_images"] else "all"
    told = (
        f"{said['network']} on {said['data']} (ANN {percent(result['ann'])} %), pulse, tracers from code 1, 8-bit "
        f"weights; {over_seeds(variants)}, which draw the calibration images; accuracy in percent on {tried} test "
        "images; seconds of one processor core:\n\n"
    )
    return told + table(head, rows) + provenance(result)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "zoo": zoo,
    "trajectory-probes": probes,
    "cifar10-resnet20": resnet20,
    "beside-published": beside_published,
    "cifar100-resnet20": resnet20,
    "beside-published-cifar100": beside_published,
    "refit": refit,
    "detection": detection,
    "sst2": sst2,
    "weight-bits": weight_bits,
    "energy-resnet20": energy,
    "energy-resnet20-finetuned": finetuned,
    "mutation": mutation,
    "early-exit": early_exit,
    "neurons": neurons,
    "nir": nir,
    "ablation-digits": ablation,
    "ablation-cifar10": ablation,
    "ablation-cifar10-resnet32": ablation,
    "first-steps-cifar10-resnet20": first_steps,
    "initial-codes-digits": initial_codes,
    "initial-codes-cifar10": initial_codes,
    "speed-rivals": rivals,
    "speed-sweep": sweeps,
    "speed-others": others,
    "speed-architectures": others,
    "speed-events": gains,
    "speed-threads": threads,
    "speed-memory": memory,
    "speed-training": training,
    "speed-gpu": on_gpu,
}

#: Tables whose result has another name.
MADE_FROM = {"beside-published": "cifar10-resnet20", "beside-published-cifar100": "cifar100-resnet20"}

if __name__ == "__main__":
    page = ROOT / "README.md"
    page.write_text(readme(page.read_text()))
