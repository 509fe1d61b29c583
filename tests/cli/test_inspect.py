"""``spikezip inspect`` tells what is captured, what becomes of it, and what is refused."""

from __future__ import annotations

import json

import pytest

from spikezip.cli import survey
from spikezip.errors import StageError
from spikezip.morph import Rule


def places(result) -> dict:
    return {place["name"]: place for place in json.loads(result.stdout)["places"]}


def test_json_of_a_users_file(spikezip, model_file):
    done = spikezip("inspect", f"{model_file}:build", "--shape", "1,8,8", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["convertible"]
    assert found["refused"] == []
    assert found["neuron_layers"] == 3
    assert found["neurons"] == 8 * 8 * 8 + 2 * 8 * 4 * 4
    assert [rule["name"] for rule in found["rules"]] == ["fold BatchNorm"]
    by_name = places(done)
    assert by_name["norm"]["operations"] == ["batch_norm"]
    assert by_name["norm"]["changes"] == [{"rule": "fold BatchNorm", "text": "batch_norm -> nothing left"}]
    assert by_name["first"]["shape"] == [8, 8, 8]
    assert by_name["first"]["kinds"] == ["synaptic"]


def test_names_are_the_authors_and_neurons_sit_where_the_relus_were(spikezip):
    by_name = places(spikezip("inspect", "spikezip:digits", "--json"))
    assert by_name["block.relu1"]["neurons"] == [{"name": "block.relu1", "lowest": 0, "highest": 7}]
    assert by_name["block.conv1"]["neurons"] == []
    assert by_name["block"]["operations"] == ["add"]


def test_choices_reach_the_rules(spikezip):
    done = spikezip(
        "inspect", "spikezip:digits", "--json", "--residual", "rcr", "--pool", "average", "--levels", "0..3"
    )
    assert {rule["name"] for rule in json.loads(done.stdout)["rules"]} == {
        "fold BatchNorm",
        "average pooling",
        "residual connection re-routing (RCR)",
    }
    by_name = places(done)
    assert by_name["maxpool"]["changes"] == [{"rule": "average pooling", "text": "max_pool2d -> avg_pool2d"}]
    assert by_name["relu"]["neurons"] == [{"name": "relu", "lowest": 0, "highest": 3}]


def test_a_rules_refusal_stands_beside_the_place_and_ends_with_1(spikezip, monkeypatch):
    def refuse(gm) -> int:
        raise StageError("'block.conv1' (conv2d) is not to our taste. Take another.")

    rule = Rule("taste", "there is none", True, "this test", lambda choice: True, refuse)
    monkeypatch.setattr(survey, "RULES", (*survey.RULES, rule))
    done = spikezip("inspect", "spikezip:digits", "--json")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert not found["convertible"]
    assert found["refused"] == ["'block.conv1' (conv2d) is not to our taste. Take another."]
    assert places(done)["block.conv1"]["refused"] == found["refused"]
    assert places(done)["bn1"]["changes"], "what was found before the refusal is told too"


def test_without_a_neuron_it_says_what_convert_says(spikezip, model_file):
    refusal = "This network has no quantizer, so no neuron can be placed."
    done = spikezip("inspect", f"{model_file}:no_neuron")
    assert done.exit_code == 1
    assert refusal in done.stdout
    assert "It can be converted" not in done.stdout
    other = spikezip("convert", f"{model_file}:no_neuron", "--data", "digits", "--out", "x.spikezip")
    assert other.exit_code == 2
    assert refusal in other.stderr


def test_what_no_integer_network_holds_is_refused_beside_its_place(spikezip, model_file):
    """convert alone told it, and inspect said that the network can be converted."""
    words = ("inspect", f"{model_file}:unlike", "--shape", "1,8,8", "--json")
    done = spikezip(*words)
    assert done.exit_code == 1
    (refusal,) = json.loads(done.stdout)["refused"]
    assert "(add) has a constant whose values, up to 2e+38, are too unlike" in refusal
    assert [name for name, place in places(done).items() if place["refused"]] == [refusal.split("'")[1]]
    other = spikezip("convert", f"{model_file}:unlike", "--data", "digits", "--out", "x.spikezip")
    assert refusal in other.stderr
    assert spikezip(*words, "--weight-bits", "none").exit_code == 0


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("batch_statistics", "mixes the samples of a batch"),
        ("mixes", "mixes the samples of a batch"),
        ("branches", "depends on"),
    ],
)
def test_what_cannot_be_captured_is_refused_and_ends_with_1(spikezip, model_file, function, reason):
    done = spikezip("inspect", f"{model_file}:{function}", "--shape", "1,8,8", "--json")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert not found["convertible"]
    assert reason in found["refused"][0]
    words = spikezip("inspect", f"{model_file}:{function}", "--shape", "1,8,8")
    assert words.exit_code == 1
    assert words.stdout.startswith("refused: ")


def test_a_shape_that_the_model_does_not_take_is_an_error_of_the_command(spikezip, model_file):
    done = spikezip("inspect", f"{model_file}:build", "--shape", "1,9,10")
    assert done.exit_code == 2
    assert "does not take the example" in done.stderr


def test_the_table_says_it_in_words(spikezip):
    done = spikezip("inspect", "spikezip:digits")
    assert done.exit_code == 0
    for text in ("block.conv2", "neuron block.relu2, codes 0..7", "3 layers of neurons", "It can be converted."):
        assert text in done.stdout
