"""Reading a record back: what is whole is kept as it is, what is not is refused with the place and the advice."""

from __future__ import annotations

import json

import pytest

from spikezip.errors import BundleError
from spikezip.report import load_record


def write(path, content) -> None:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def test_a_whole_record_is_read_as_it_stands(tmp_path, make_record):
    record = make_record(steps=6, layers=3)
    write(tmp_path / "record.json", record)
    assert load_record(tmp_path / "record.json") == record
    assert load_record(tmp_path) == record  # a run's folder will do


def test_a_newer_measure_may_add_keys(tmp_path, make_record):
    record = make_record(steps=6, layers=3) | {"mood": "good"}
    write(tmp_path / "record.json", record)
    assert load_record(tmp_path / "record.json")["mood"] == "good"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": "spikezip.record/1", "na', r"not whole JSON \(line 1, column 33.*cut off\? Measure the run again"),
        ("", "not whole JSON"),
        ("[1, 2]", "not a spikezip record"),
        ('{"nir": 1}', 'has no "format"'),
        ('{"format": "nir/1"}', "its format is 'nir/1'"),
        ('{"format": "spikezip.record/2"}', "of format 'spikezip.record/2'; this version reads"),
        ('{"format": "spikezip.record/1", "name": "a", "steps": NaN}', "holds NaN, which is no number"),
        ('{"format": "spikezip.record/1", "name": "a", "steps": -Infinity}', "holds -Infinity"),
        ('{"format": "spikezip.record/1", "name": "a"}', "malformed at steps: Field required"),
        (
            '{"format": "spikezip.record/1", "name": "a", "steps": 2, "synops": [1]}',
            "synops has 1 values, but .* 2 steps",
        ),
        (
            '{"format": "spikezip.record/1", "name": "a", "steps": 1, "agreement": [1.5]}',
            r"malformed at agreement\[0\]",
        ),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path, content, message):
    write(tmp_path / "record.json", content)
    with pytest.raises(BundleError, match=message):
        load_record(tmp_path / "record.json")


def test_missing_and_binary_files_are_named(tmp_path):
    with pytest.raises(BundleError, match=r"There is no record at .*none\.json.*measure"):
        load_record(tmp_path / "none.json")
    (tmp_path / "x.json").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(BundleError, match="not a text file"):
        load_record(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: r["layers"][1]["rate"].pop(), r"layers\[1\]\.rate has 5 values, but the run has 6 steps"),
        (lambda r: r["layers"][0]["codes"].pop(), r"layers\[0\]: 7 shares for the codes 0\.\.7"),
        (lambda r: r["layers"][0].update(scale=0.0), r"layers\[0\]\.scale"),
        (lambda r: r["weights"][0]["histogram"]["edges"].pop(), r"weights\[0\]\.histogram: 40 edges for 40 counts"),
        (lambda r: r["raster"]["layers"][0]["spikes"].append([1, 99, 1]), "neuron index 99"),
        (lambda r: r["raster"]["layers"][0]["spikes"].append([7, 0, 1]), "spike at step 7"),
        (lambda r: r["settled"].update(outcome="FINE"), r"settled\.outcome"),
        (lambda r: r["certificate"].update(equal=True, mismatches=3), "says 'equal', yet counts 3 mismatches"),
        (lambda r: r["certificate"].update(equal=True, outputs_equal=False), r"certificate: it says 'equal'"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(tmp_path, make_record, spoil, message):
    record = make_record(steps=6, layers=3)
    record["certificate"].update(equal=False, mismatches=0, layers=[])
    spoil(record)
    write(tmp_path / "record.json", record)
    with pytest.raises(BundleError, match=message):
        load_record(tmp_path / "record.json")
