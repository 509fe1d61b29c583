"""The page and the figure files: everything is there, nothing from outside is needed, hostile names stay text."""

from __future__ import annotations

import base64
import csv
import html.parser
import io
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from urllib.parse import unquote

import pytest

from spikezip.errors import BundleError, OutputError
from spikezip.report import write_report
from spikezip.report.figures import Drawing, Run
from spikezip.report.figures.cost import energy_ratio
from spikezip.report.figures.maps import firing_rates
from spikezip.report.figures.neurons import raster, traces
from spikezip.report.figures.over_time import accuracy, agreement
from spikezip.report.page import BUDGET
from spikezip.report.record import parse_record
from spikezip.report.style import house_style

SHARED = ["accuracy", "agreement", "early-exit", "pareto-synops", "pareto-energy-1", "pareto-energy-2"]
OWN = [
    "firing-rate",
    "l1-distance",
    "t-eq",
    "raster",
    "trace-1",
    "trace-2",
    "energy-by-layer",
    "audit",
    "codes",
    "scales",
    "weights",
]
VOID = {"meta", "link", "img", "br", "input"}


def lines(path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


class Outline(html.parser.HTMLParser):
    """Tags, ids, attributes and text of a page; notes tags that do not nest."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.broken: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.broken.append(tag)

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


@pytest.fixture(scope="module")
def one(tmp_path_factory, make_record):
    folder = tmp_path_factory.mktemp("one")
    record = make_record()
    write_report([record], folder / "report.html", figures=folder / "figures")
    return record, folder


def test_every_figure_and_table_is_on_the_page(one):
    record, folder = one
    page = Outline((folder / "report.html").read_text(encoding="utf-8"))
    assert [name for name in [*SHARED, "energy-ratio", *OWN] if name not in page.ids] == []
    assert page.tags.count("svg") == len(SHARED) + 1 + len(OWN)
    for said in (
        "Equal to its quantized network (QANN)",
        record["command"],
        "abc1234",
        "softmax: exp",
        "torch 2.13.0",
        "0" * 64,
    ):
        assert said in page.text
    assert all(condition["text"].split(";")[0][:30] in page.text for condition in record["certificate"]["conditions"])
    assert all(layer["name"] in page.text for layer in record["layers"])


def test_the_page_is_well_formed_small_and_needs_nothing_from_outside(one):
    text = (one[1] / "report.html").read_text(encoding="utf-8")
    page = Outline(text)
    assert page.broken == []
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    wanted = [v for name, v in page.attributes if name in ("src", "href", "srcset", "action", "data") and v]
    assert [v for v in wanted if not v.startswith(("data:", "#"))] == []
    assert re.findall(r"@import|url\((?!#)", text) == []
    assert "default-src 'none'" in text
    references = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text)
    assert {a or b for a, b in references} <= set(page.ids)
    assert len(text.encode()) < 2_000_000


def test_every_figure_can_be_taken_from_the_page(one):
    folder = one[1]
    page = Outline((folder / "report.html").read_text(encoding="utf-8"))
    files = [value or "" for name, value in page.attributes if name == "download"]
    names = [*SHARED, "energy-ratio", *OWN]
    assert sorted(files) == sorted(f"{name}.{kind}" for name in names for kind in ("pdf", "csv"))
    links = [v for name, v in page.attributes if name == "href" and v and v.startswith("data:application/pdf")]
    assert all(base64.b64decode(link.partition(",")[2]).startswith(b"%PDF") for link in links) and links
    assert [v for name, v in page.attributes if name == "data-file"] == ["svg"] * len(names)
    texts = [
        unquote(v.partition(",")[2]) for n, v in page.attributes if n == "href" and v and v.startswith("data:text")
    ]
    assert (folder / "figures" / "audit.csv").read_text(encoding="utf-8") in texts


def test_the_audit_and_the_number_formats_are_told(one):
    text = Outline((one[1] / "report.html").read_text(encoding="utf-8")).text
    assert "Every synaptic operation but those on the analog input receives spikes alone." in text
    assert "Of 3 operations, 3 add up exactly (3 in float32)." in text


def test_figures_follow_the_theme(one):
    text = (one[1] / "report.html").read_text(encoding="utf-8")
    svgs = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svgs)) == set()  # only variables
    assert {"var(--ink)", "var(--s1)", "var(--grid)"} <= set(re.findall(r"var\(--\w+\)", svgs))
    assert svgs.count('class="only-light"') == svgs.count('class="only-dark"') > 0


@pytest.mark.parametrize("name", [*SHARED, "energy-ratio", *OWN])
def test_every_figure_is_also_a_file_with_its_data(one, name):
    figures = one[1] / "figures"
    root = ET.parse(figures / f"{name}.svg").getroot()
    assert root.tag.endswith("svg")
    assert (figures / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    rows = list(csv.reader(lines(figures / f"{name}.csv")))
    assert len(rows) > 1
    assert {len(row) for row in rows} == {len(rows[0])}


def test_exported_data_are_the_records(one):
    record, folder = one

    def column(figure: str, name: str) -> list[float]:
        rows = csv.DictReader(lines(folder / "figures" / f"{figure}.csv"))
        return [float(row[name]) for row in rows if row.get("network", "snn") == "snn"]

    assert column("accuracy", "snn") == record["accuracy"]["snn"]
    assert column("agreement", "agreement") == record["agreement"]
    assert column("pareto-synops", "synops") == record["synops"]
    assert column("pareto-energy-2", "energy_pj") == record["energy"]["models"][1]["snn_pj"]
    assert column("firing-rate", "rate") == [x for layer in record["layers"] for x in layer["rate"]]
    assert column("l1-distance", "l1") == [x for layer in record["layers"] for x in layer["l1"]]
    assert column("trace-2", "membrane") == record["traces"][1]["membrane"]
    settled = record["early_exit"][-1]
    exits = list(csv.DictReader(lines(folder / "figures" / "early-exit.csv")))
    assert [float(r["accuracy"]) for r in exits if r["rule"] == "settled"] == [settled["accuracy"]]
    fixed = [float(r["accuracy"]) for r in exits if r["rule"] == "fixed"]
    assert fixed == record["accuracy"]["snn"][: len(fixed)] and len(fixed) >= settled["mean_step"]
    assert column("scales", "scale") == [layer["scale"] for layer in record["layers"]]
    assert column("codes", "share") == [x for layer in record["layers"] for x in layer["codes"]]
    assert column("energy-by-layer", "snn_pj") == [layer["snn_pj"] for layer in record["energy"]["layers"]]
    assert len(column("raster", "t")) == sum(len(layer["spikes"]) for layer in record["raster"]["layers"])
    counts = record["settled"]["t_eq_histogram"]
    assert dict(zip(column("t-eq", "t_eq"), column("t-eq", "images"))) == {int(t): n for t, n in counts.items()}


def test_a_trace_has_gaps_where_a_value_is_not_finite(make_record):
    record = make_record(steps=6, layers=3)
    record["traces"][0]["drive"][0] = record["traces"][0]["membrane"][0] = None
    with house_style():
        broken, whole = traces(Run(parse_record(record, "it"), "it", "it"))
    assert isinstance(broken, Drawing) and isinstance(whole, Drawing)
    assert broken.data.rows[0][1] is None and broken.data.rows[0][4] is None
    assert "Lines have gaps" in broken.caption and "Lines have gaps" not in whole.caption


def test_tables_and_bars_of_cost_are_the_records(one):
    record, folder = one
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "yes: float32 holds every sum" in text
    assert "Operations were counted step by step on 32 images." in text
    assert '<th scope="row" class="number">9</th>' in text
    model = record["energy"]["models"][1]
    for t in (0, 9):
        assert f'<td class="number">{model["snn_pj"][t] / model["qann_pj"]:.3g}×</td>' in text
    bars = list(csv.DictReader(lines(folder / "figures" / "audit.csv")))
    assert [float(r["acs"]) for r in bars] == [row["acs"] for row in record["audit"]["rows"]]


@pytest.mark.parametrize("receives", ["ternary x streams:2", "streams:2 x ternary"])
def test_operations_that_multiply_or_round_are_named(tmp_path, make_record, receives):
    record = small(make_record)
    record["audit"]["spike_driven"] = False
    record["audit"]["rows"][1].update(name="attention", input=receives)
    record["exactness"][1].update(bits=None, arithmetic="inexact")
    page = Outline(write_report(record, tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "Not spikes alone: attention." in page.text
    assert "Of 3 operations, 2 add up exactly (2 in float32), 1 are not exact." in page.text


def test_spikes_of_several_levels_are_not_taken_for_neurons_that_fired(tmp_path, make_record):
    record = make_record(steps=8, layers=3) | {"slew": 7}
    record["layers"][0]["rate"][0] = 5.8
    page = Outline(write_report(record, tmp_path / "r.html", figures=tmp_path).read_text(encoding="utf-8"))
    assert "sparsity" not in page.text.lower() and "are silent in a step" not in page.text
    assert "levels sent / image" in page.text and "Levels sent, up or down, per neuron" in page.text
    assert "follows the drive at up to 7 levels a step" in page.text and "(up, down)" in page.text
    assert lines(tmp_path / "firing-rate.csv")[0].strip() == "layer,t,rate"


@pytest.mark.parametrize("units", [None, (0.5, 0.25, 0.125)])
def test_thresholds_of_an_integer_network_are_told_or_left_out(tmp_path, make_record, units):
    record = small(make_record)
    for layer, unit in zip(record["layers"], units or [None] * 3, strict=True):
        layer.update(scale=1.0, unit=unit)
    page = Outline(write_report(record, tmp_path / "r.html", figures=tmp_path).read_text(encoding="utf-8"))
    assert ("scales" in page.ids) == bool(units)
    assert ("θ is what one level is worth" if units else "Thresholds are not shown") in page.text
    if units:
        assert [r["scale"] for r in csv.DictReader(lines(tmp_path / "scales.csv"))] == ["0.5", "0.25", "0.125"]


def small(make_record, **changes):
    return make_record(steps=8, layers=3) | {"weights": [], "traces": [], "raster": None, "early_exit": None} | changes


def test_the_same_record_gives_the_same_bytes(tmp_path, make_record):
    for name in ("a", "b"):
        record = small(make_record, energy=None, synops=None, accuracy=None, settled=None)
        write_report(record, tmp_path / f"{name}.html", figures=tmp_path / name)
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_what_was_not_measured_is_left_out_with_the_reason(tmp_path):
    bare = {"format": "spikezip.record/1", "name": "bare", "steps": 3}
    page = Outline(write_report([bare], tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "svg" not in page.tags
    assert "Not verified" in page.text
    for why in (
        "no labels were given",
        "energy was not measured",
        "no neuron was traced",
        "early exit was not measured",
    ):
        assert why in page.text
    for how in ("run the network again: spikezip run BUNDLE --data DATA", "--early-exit margin:0.6", "--verify"):
        assert how in page.text


def test_a_figure_as_high_as_two_stands_beside_two(tmp_path, make_record):
    record = make_record(steps=8, layers=3) | {"weights": []}
    few = record["raster"]["layers"]
    record["raster"]["layers"] = [layer | {"name": f"{layer['name']}.{i}"} for i in range(3) for layer in few]
    page = write_report([record], tmp_path / "r.html").read_text(encoding="utf-8")
    assert re.findall(r'<figure class="plate tall" id="(.*?)">', page) == ["raster"]


def test_the_line_of_equal_energy_is_in_sight(make_record):
    record = small(make_record)
    model = record["energy"]["models"][0]
    model["snn_pj"] = [0.1 * model["qann_pj"] * t / 8 for t in range(1, 9)]
    record["energy"]["models"] = [model]
    with house_style():
        (drawing,) = energy_ratio([Run(parse_record(record, "a record"), "a", "a")])
    assert isinstance(drawing, Drawing)
    assert drawing.figure.axes[0].get_ylim()[1] > 1


def test_a_run_that_cost_nothing_is_drawn(make_record):
    record = small(make_record)
    record["energy"]["models"] = record["energy"]["models"][:1]
    record["energy"]["models"][0]["snn_pj"] = [0.0] * 8
    with house_style():
        (drawing,) = energy_ratio([Run(parse_record(record, "a record"), "a", "a")])
    assert isinstance(drawing, Drawing)
    assert drawing.figure.axes[0].get_yscale() == "linear"


@pytest.mark.parametrize("shares", [[0.991, 0.989, 0.986], [1.0, 1.0, 1.0], [0.501, 0.5, 0.5], [0.001, 0.0, 0.002]])
def test_a_hair_of_accuracy_does_not_look_like_a_cliff(shares):
    record = {"format": "spikezip.record/1", "name": "a", "steps": 3, "accuracy": {"snn": shares}}
    with house_style():
        (drawing,) = accuracy([Run(parse_record(record, "a record"), "a", "a")])
    assert isinstance(drawing, Drawing)
    low, high = drawing.figure.axes[0].get_ylim()
    assert high - low >= 4.9 or low == -2
    assert high <= 102
    assert low < 100 * min(shares) and 100 * max(shares) < high


def test_time_axes_end_a_little_after_all_is_silent(make_record):
    record = make_record(steps=40)
    assert record["settled"]["outcome"] == "SETTLED"
    last = record["settled"]["t_eq_max"] + max(3, record["settled"]["t_eq_max"] // 5)
    assert last < 40
    with house_style():
        run = Run(parse_record(record, "a record"), "a", "a")
        drawings = [d for make in (accuracy, energy_ratio) for d in make([run])]
        drawings += [d for make in (firing_rates, raster, traces) for d in make(run)]
        unsettled = Run(parse_record(make_record(steps=6), "a record"), "a", "a")
        (whole,) = accuracy([unsettled])
    for drawing in [d for d in drawings if isinstance(d, Drawing)]:
        assert last <= drawing.figure.axes[0].get_xlim()[1] < last + 1.5, drawing.name
    assert isinstance(drawings[0], Drawing) and len(drawings[0].data.rows) == 40, "the data hold all"
    assert isinstance(whole, Drawing) and whole.figure.axes[0].get_xlim()[1] > 6


def test_a_run_that_ended_before_all_input_came_is_drawn_within_its_axes(make_record):
    record = make_record(steps=4, layers=3)
    record["settled"]["t_off"] = 8
    run = Run(parse_record(record, "a record"), "a", "a")
    with house_style():
        for drawing in (*accuracy([run]), *agreement([run])):
            assert isinstance(drawing, Drawing)
            drawing.figure.savefig(io.BytesIO(), format="svg")  # warns where marks far outside leave no room


def test_records_of_one_name_are_told_apart_by_their_folders(tmp_path, make_record):
    for name in ("pulse", "even"):
        (tmp_path / name).mkdir()
        record = small(make_record, layers=[])
        record["encoding"]["name"] = name
        (tmp_path / name / "record.json").write_text(json.dumps(record))
    page = Outline(write_report([tmp_path / "pulse", tmp_path / "even"], tmp_path / "r.html").read_text("utf-8"))
    assert {"run-resnet20-pulse", "run-resnet20-even"} <= set(page.ids)
    assert "encoding" in page.text[: page.text.index("Accuracy, and what it costs")]


def test_what_a_model_covers_and_leaves_out_stands_beside_its_figures(tmp_path, make_record):
    record = small(make_record)
    record["energy"]["models"][0].update(about="Arithmetic alone.", unpriced=["tracer_add", "memory accesses"])
    page = Outline(write_report(record, tmp_path / "r.html").read_text("utf-8"))
    assert "Arithmetic alone. Counted, but without a price in it: tracer add, memory accesses." in page.text
    first, others = page.ids.index("pareto-energy-1"), page.ids.index("pareto-energy-2")
    assert first < page.ids.index("agreement") < others, "the first model's figures stand with the accuracy"


def test_cautions_of_a_record_stand_on_the_page(tmp_path, make_record):
    record = small(make_record)
    record["energy"]["cautions"] = ["The weights of 3 layers are floats."]
    page = Outline(write_report(record, tmp_path / "r.html").read_text("utf-8"))
    assert "The weights of 3 layers are floats." in page.text


def test_names_of_runs_stay_apart_in_a_legend(tmp_path, make_record):
    names = [f"trajectory for t=2 (8 epochs), {n} levels, even:2" for n in (3, 4)]
    page = write_report([small(make_record, name=name) for name in names], tmp_path / "r.html")
    for name in names:
        assert len(re.findall(f"<text[^>]*>{re.escape(name)}", page.read_text(encoding="utf-8"))) >= 4


def test_without_labels_cost_is_held_against_agreement(tmp_path, make_record):
    record = small(make_record, accuracy=None, layers=[], energy=None)
    page = Outline(write_report([record], tmp_path / "r.html", figures=tmp_path).read_text(encoding="utf-8"))
    assert "Accuracy against time (no labels were given)" in page.text
    assert "accuracy" not in page.ids
    assert "agreement" in (tmp_path / "pareto-synops.csv").read_text(encoding="utf-8").splitlines()[0]


def test_a_run_that_hit_the_step_limit_says_so_first(tmp_path, make_record):
    page = Outline(write_report([small(make_record, layers=[])], tmp_path / "r.html").read_text(encoding="utf-8"))
    limit = page.text.index("stopped at its limit of 8 steps before every neuron was silent (STEP_LIMIT)")
    assert limit < page.text.index("SNN accuracy")
    assert "not reached" in page.text


def test_several_runs_share_a_page(tmp_path, make_record):
    runs = [small(make_record), small(make_record), small(make_record, name="other", certificate=None)]
    runs[2]["data"] = {"name": "digits", "split": "test", "images": 50}
    page = Outline(write_report(runs, tmp_path / "r.html").read_text(encoding="utf-8"))
    assert {"run-resnet20", "run-resnet20-2", "run-other"} <= set(page.ids)
    assert {"accuracy", "energy-ratio-1", "resnet20-2-codes", "other-codes"} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    for said in (
        "Runs compared",
        "Energy at the last step, SNN / QANN",
        "resnet20 (2)",
        "not verified",
        "accuracies are not comparable",
    ):
        assert said in page.text


def test_too_many_runs_leave_figures_out_and_say_so(tmp_path, make_record, monkeypatch):
    # By its module: `spikezip.report` is the verb.
    monkeypatch.setattr(sys.modules["spikezip.report.page"], "BUDGET", 250_000)
    page_path = write_report([small(make_record) for _ in range(3)], tmp_path / "r.html")
    page = Outline(page_path.read_text(encoding="utf-8"))
    assert "report on this run alone to see it" in page.text
    assert "Layers of resnet20" in page.text
    assert BUDGET < 5_000_000


def test_tables_count_as_well_as_figures(tmp_path, make_record, monkeypatch):
    monkeypatch.setattr(sys.modules["spikezip.report.page"], "BUDGET", 700_000)
    runs = [small(make_record, name=name) for name in "ab"]
    for run in runs:
        rows = [{"name": f"layer{i}", "mismatches": 0, "codes_checked": 1000} for i in range(1500)]
        run["certificate"]["layers"] = rows
    page = write_report(runs, tmp_path / "r.html")
    assert "left out to keep this page small" in page.read_text(encoding="utf-8")
    assert page.stat().st_size < 740_000


HOSTILE = '</script><script>alert(1)</script>"><img src=x onerror=alert(2)> {{ 7*7 }} $x_ --> ]]> 层 #0072b2\x00\x1b'


def test_hostile_names_stay_text(tmp_path, make_record):
    record = make_record(HOSTILE, steps=8, layers=3)
    record.update(command=HOSTILE, commit=HOSTILE, versions={HOSTILE: HOSTILE}, engine=HOSTILE)
    for part in [*record["layers"], *record["weights"], *record["energy"]["layers"], *record["energy"]["models"]]:
        part["name"] = HOSTILE
    for part in [*record["raster"]["layers"], *record["certificate"]["layers"]]:
        part["name"] = HOSTILE
    record["traces"][0]["layer"] = HOSTILE
    record["energy"]["uncounted"] = [HOSTILE]
    other = {"format": "spikezip.record/1", "name": "other", "steps": 3, "agreement": [0.1, 0.2, 0.3]}
    record["energy"]["models"] = record["energy"]["models"][:1]
    text = write_report([record, other], tmp_path / "r.html").read_text(encoding="utf-8")
    page = Outline(text)
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert [name for name, _ in page.attributes if name.startswith("on")] == []
    assert page.broken == []
    assert "alert(1)" in page.text
    assert "{{ 7*7 }}" in page.text
    few = {key: record[key] for key in ("format", "name", "steps", "layers")}
    few["layers"] = [{**layer, "rate": [], "l1": [], "codes": []} for layer in few["layers"]]
    write_report([few], tmp_path / "few.html", figures=tmp_path / "f")
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == ["scales.csv", "scales.pdf", "scales.svg"]
    ET.parse(tmp_path / "f" / "scales.svg")


def test_files_that_exist_are_not_replaced_unasked(tmp_path, make_record):
    out = tmp_path / "r.html"
    out.write_text("mine")
    record = {"format": "spikezip.record/1", "name": "bare", "steps": 3}
    with pytest.raises(OutputError, match=r"r\.html exists.*overwrite=True"):
        write_report([record], out)
    assert out.read_text() == "mine"
    write_report([record], out, overwrite=True)
    assert "bare" in out.read_text(encoding="utf-8")
    (tmp_path / "agreement.csv").write_text("mine")
    with pytest.raises(OutputError, match=r"agreement\.csv exists"):
        write_report([record | {"agreement": [0.1, 0.2, 0.3]}], tmp_path / "new.html", figures=tmp_path)
    assert not (tmp_path / "new.html").exists()
    assert list(tmp_path.glob("*.svg")) == []


def test_places_that_cannot_be_written_are_named(tmp_path):
    record = {"format": "spikezip.record/1", "name": "bare", "steps": 3}
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_report([record], tmp_path / "file" / "r.html")
    with pytest.raises(OutputError, match="is a folder"):
        write_report([record], tmp_path)
    with pytest.raises(OutputError, match="no records"):
        write_report([], tmp_path / "r.html")
    with pytest.raises(BundleError, match=r"record 2 of 2 is malformed at steps"):
        write_report([record, record | {"steps": 0}], tmp_path / "r.html")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_nothing_is_left_behind_when_writing_fails(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        write_report([{"format": "spikezip.record/1", "name": "bare", "steps": 3}], tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == []


def test_importing_is_light_and_matplotlib_is_left_as_it_was(tmp_path):
    code = (
        "import sys, spikezip\n"
        "assert not {'matplotlib', 'jinja2'} & set(sys.modules), 'heavy import'\n"
        "import matplotlib\n"
        "matplotlib.rcParams['font.size'] = 31\n"
        "keys = [key for key in matplotlib.rcParams if key != 'backend']  # asking for it would choose one\n"
        "before = [matplotlib.rcParams[key] for key in keys]\n"
        "record = {'format': 'spikezip.record/1', 'name': 'a', 'steps': 3, 'agreement': [0, .5, 1]}\n"
        f"spikezip.report([record], {str(tmp_path / 'r.html')!r})\n"
        "assert [matplotlib.rcParams[key] for key in keys] == before, 'settings changed'\n"
        "assert 'matplotlib.pyplot' not in sys.modules, 'pyplot imported'\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
