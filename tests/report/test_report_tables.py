"""Tables as CSV and LaTeX, and the words a certificate is put in."""

from __future__ import annotations

import csv
import io

import pytest

from spikezip.report.figures import Drawing, Run
from spikezip.report.figures.cost import pareto_front
from spikezip.report.figures.maps import firing_rates, l1_distance
from spikezip.report.figures.over_time import accuracy
from spikezip.report.record import parse_record
from spikezip.report.run_tables import energy_tables, layer_tables
from spikezip.report.style import house_style
from spikezip.report.summary import outcome, story, verdict
from spikezip.report.tables import Column, Table, compact, energy, latex_escape, percent


def test_csv_keeps_every_digit_and_any_name():
    rows = [('a,"b"\nc', 0.1 + 0.2, None, 3), ("d", 1e-17, -0.5, True)]
    table = Table.of("t", ["name", "x", "y", "n"], rows)
    read = list(csv.reader(io.StringIO(table.csv())))
    assert read[0] == ["name", "x", "y", "n"]
    assert read[1] == ['a,"b"\nc', "0.30000000000000004", "", "3"]
    assert float(read[2][1]) == 1e-17


def test_latex_sets_names_as_they_read():
    table = Table("50 % of a_b", [Column("name", numeric=False), Column("x")], [["$x^2$ & {y}\\", 0.5]])
    text = table.latex()
    assert r"\caption{50 \% of a\_b}" in text
    assert r"\begin{tabular}{lr}" in text
    assert r"\$x\textasciicircum{}2\$ \& \{y\}\textbackslash{} & 0.5 \\" in text
    assert latex_escape("a\nb") == "a b"


@pytest.mark.parametrize(("share", "text"), [(0.9999999, "> 99.99 %"), (1.0, "100 %"), (1e-9, "< 0.01 %"), (0, "0 %")])
def test_rounding_never_claims_all_or_none(share, text):
    assert percent(share) == text


def test_a_legend_never_claims_all(make_record):
    record = make_record(steps=6, layers=3)
    record["accuracy"] = {"ann": 0.99996, "qann": 0.99998, "snn": [0.99999] * 6}
    with house_style():
        (drawn,) = accuracy([Run(parse_record(record, "it"), "it", "it")])
    assert isinstance(drawn, Drawing)
    labels = [str(line.get_label()) for line in drawn.figure.axes[0].lines]
    assert [text for text in labels if "%" in text] == [f"{name} > 99.99 %" for name in ("SNN", "QANN", "ANN")]


@pytest.mark.parametrize(
    ("pj", "text"),
    [(999.4, "999 pJ"), (999.7, "1 nJ"), (999_700, "1 µJ"), (999.7e6, "1 mJ"), (2.5e12, "2.5 J"), (4e15, "4,000 J")],
)
def test_the_unit_of_an_energy_is_that_of_the_rounded_figure(pj, text):
    assert energy(pj) == text
    assert energy(-pj) == f"-{text}"


@pytest.mark.parametrize(
    ("count", "text"),
    [(999_700, "999,700"), (1e6, "1 M"), (999_700_000, "1 G"), (999.7e9, "1 T"), (999.7e12, "1,000 T")],
)
def test_the_prefix_of_a_count_is_that_of_the_rounded_figure(count, text):
    assert compact(count) == text


@pytest.mark.parametrize(
    ("compared", "images", "where"),
    [
        (200, "every image", ""),
        (128, "each of the first 128 images", " in the first 128 images"),
        (None, "each of the images compared", " in the images compared"),  # an older record
    ],
)
def test_figures_of_some_images_are_not_told_of_all(make_record, compared, images, where):
    record = parse_record(make_record(steps=6, layers=3) | {"compared": compared}, "it")
    titles = [column.title for column in layer_tables(record)[0].columns]
    assert titles[-2:] == [f"settled at t{where}", f"codes differing at end{where}"]
    with house_style():
        (drawn,) = l1_distance(Run(record, "it", "it"))
    assert isinstance(drawn, Drawing) and f"for good, in {images}: " in drawn.caption
    assert ("over the" in drawn.caption) == bool(where)


def test_sparsity_is_that_of_the_steps_until_all_is_silent(make_record):
    short, long = (parse_record(make_record(steps=steps, layers=3), "it") for steps in (40, 80))
    last = short.settled.t_eq_max if short.settled else None
    assert last
    (column, found), (_, again) = (
        next((c.title, [row[i] for row in t.rows]) for i, c in enumerate(t.columns) if "sparsity" in c.title)
        for t in (layer_tables(short)[0], layer_tables(long)[0])
    )
    assert column == f"sparsity, t ≤ {last}"
    assert found == pytest.approx([1 - sum(layer.rate[:last]) / last for layer in short.layers])
    assert again == pytest.approx(found)
    with house_style():
        drawn = [firing_rates(Run(record, "it", "it"))[0] for record in (short, long)]
    captions = [drawing.caption for drawing in drawn if isinstance(drawing, Drawing)]
    assert captions == captions[:1] * 2 and f"up to t = {last}, T_eq of the slowest image" in captions[0]
    unsettled = parse_record(make_record(steps=6), "it")
    assert "sparsity, t ≤ 6" in [column.title for column in layer_tables(unsettled)[0].columns]


def test_front_drops_what_is_beaten():
    points = [(5.0, 0.9), (1.0, 0.5), (2.0, 0.4), (3.0, 0.8), (3.0, 0.85), (6.0, 0.9)]
    assert pareto_front(points) == [(1.0, 0.5), (3.0, 0.85), (5.0, 0.9)]


def proof(**changes):
    part = {
        "equal": True,
        "images": 10_000,
        "mismatches": 0,
        "outputs_equal": True,
        "engine": "reference",
        "layers": [{"name": "relu", "mismatches": 0, "codes_checked": 500}],
        "conditions": [{"id": f"C{i}", "text": "x", "holds": True} for i in range(1, 7)],
    }
    part.update(changes)
    content = {"format": "spikezip.record/1", "name": "a", "steps": 2, "agreement": [0.5, 1.0], "certificate": part}
    return parse_record(content, "it")


def test_equal_is_said_with_what_was_checked():
    said = verdict(proof())
    assert said.sign == "equal"
    assert "10,000 images with the reference engine: all 500 codes and the outputs are the QANN's" in said.sentence
    assert "equal on every input" in said.sentence


@pytest.mark.parametrize("holds", [False, None])
def test_equal_is_not_stretched_past_the_conditions(holds):
    conditions = [{"id": f"C{i}", "text": "x", "holds": True if i != 6 else holds} for i in range(1, 7)]
    said = verdict(proof(conditions=conditions))
    assert said.sign == "equal"
    assert "C6" in said.sentence
    assert "not proven for others" in said.sentence
    assert "every input" not in said.sentence
    assert "every input" not in verdict(proof(conditions=[])).sentence


def test_not_equal_names_the_first_layer():
    layers = [
        {"name": "conv1", "mismatches": 0, "codes_checked": 5},
        {"name": "layer1.0", "mismatches": 1, "codes_checked": 5},
        {"name": "layer2.0", "mismatches": 2, "codes_checked": 5},
    ]
    said = verdict(proof(equal=False, mismatches=3, layers=layers, outputs_equal=False))
    assert said.sign == "unequal"
    assert "3 codes differ, first in layer1.0 (1 code)" in said.sentence
    assert "outputs are not equal" in said.sentence


def test_without_a_certificate_nothing_is_claimed():
    record = proof().model_copy(update={"certificate": None})
    said = verdict(record)
    assert said.headline == "Not verified"
    assert "agree with the QANN's on 100 % of images, which is no proof" in said.sentence


def test_an_unsettled_run_says_so(make_record):
    record = parse_record(make_record(steps=6), "it")
    assert "limit of 6 steps" in (outcome(record) or "")
    assert "STEP_LIMIT" in (outcome(record) or "")
    assert outcome(parse_record(make_record(steps=24), "it")) is None


def test_an_unsettled_proof_says_why_it_proves_nothing():
    said = verdict(proof(equal=False, outcome="STEP_LIMIT"))
    assert said.headline == "Not shown equal to its quantized network (QANN)"
    assert "no code differs" in said.sentence
    assert "when the steps ran out (STEP_LIMIT)" in said.sentence


def test_synops_stand_with_the_operations_and_not_with_the_neurons(make_record):
    record = parse_record(make_record(steps=8, layers=3), "it")
    assert not [c.title for table in layer_tables(record) for c in table.columns if "SynOps" in c.title]
    by_operation = energy_tables(record)[-1]
    place = [c.title for c in by_operation.columns].index("SynOps")
    assert [row[place] for row in by_operation.rows] == [x.synops[-1] for x in record.energy.layers]


def test_the_story_says_when_it_is_as_good_and_what_it_costs():
    content = {"format": "spikezip.record/1", "name": "a", "steps": 4}
    assert story(parse_record(content, "it")) is None
    content["accuracy"] = {"qann": 0.9, "snn": [0.2, 0.895, 0.5, 0.9]}
    assert story(parse_record(content, "it")) == (
        "From t = 4 on it is at least as accurate as its QANN (90.00 %), to within a point."
    )
    content["accuracy"] = {"qann": 0.9, "snn": [0.2, 0.95, 0.5, 0.8]}
    assert story(parse_record(content, "it")) == (
        "Its accuracy is not within a point of its QANN's (90.00 %) by t = 4."
    )
    models = [{"name": n, "snn_pj": [1, 2, 3, e], "qann_pj": 2} for n, e in (("mine", 4), ("b", 5), ("c", 3))]
    content["energy"] = {"models": [*models, {"name": "chip", "snn_pj": [1, 2, 3, 4]}]}
    said = story(parse_record(content, "it")) or ""
    assert "takes 2 times the energy of that QANN, by the model mine" in said, "its weights may be no integers"
    content["network"] = {"weight_bits": 8}
    said = story(parse_record(content, "it")) or ""
    assert "takes 2 times the energy of that QANN on integer hardware, by the model mine, 1.5 to 2.5 times by" in said
