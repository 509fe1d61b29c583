"""The verbs one after another, as a user goes: their own model file, trained weights, digits."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.table import Table
from safetensors.torch import load_file

from spikezip.cli import screen
from spikezip.cli.run import exit_rule, show, show_energy
from spikezip.measure import exit_point
from spikezip.run import Outcome, Run


@pytest.fixture(scope="module")
def trained(tmp_path_factory, model_file) -> Path:
    """Weights of the user's network, trained through the command line."""
    from typer.testing import CliRunner

    from spikezip.cli import app

    folder = tmp_path_factory.mktemp("trained")
    recipe = folder / "ann.yaml"
    recipe.write_text(
        f"name: mine\nstage: ann\nmodel: {model_file}:build\ndata: digits\nepochs: 8\n"
        "optimizer: {sgd: {rate: 0.1}}\nout: unused\n"
    )
    done = CliRunner().invoke(app, ["train", str(recipe), "--out", str(folder / "ann")])
    assert done.exit_code == 0, done.stderr
    assert "validation accuracy" in done.stdout
    return folder / "ann" / "network.safetensors"


def test_train_writes_the_users_own_names(trained):
    assert {"first.weight", "norm.running_mean", "head.bias"} <= set(load_file(trained))


def test_convert_run_verify_report(spikezip, model_file, trained):
    done = spikezip("convert", f"{model_file}:build", "--weights", trained, "--data", "digits", "--out", "a.spikezip")
    assert done.exit_code == 0, done.stderr
    assert "Next: spikezip run a.spikezip" in done.stdout
    told = re.search(r"Right on 359 images \(test\): ANN [\d.]+ %, QANN [\d.]+ %, integer QANN ([\d.]+) %", done.stdout)
    assert told is not None

    done = spikezip("run", "a.spikezip", "--data", "digits", "--steps", "24", "--verify")
    assert done.exit_code == 0, done.stderr
    assert "equal: 0 codes differ on 359 images" in done.stdout
    record = json.loads(Path("record.json").read_text())
    assert record["data"] == {"name": "digits", "split": "test", "images": 359}
    assert len(record["accuracy"]["snn"]) == 24
    assert record["accuracy"]["snn"][-1] == record["accuracy"]["qann"] > 0.9
    assert told[1] == f"{100 * record['accuracy']['qann']:.2f}"
    assert record["settled"]["outcome"] == "SETTLED"
    last = re.search(r"(\d+) to 24 │ +([\d.]+) % │ +100 % │\n└", done.stdout)  # a settled network says one thing
    assert last is not None and int(last[1]) <= record["settled"]["t_eq_max"]
    assert last[2] == f"{100 * record['accuracy']['qann']:.2f}"
    assert record["certificate"]["equal"]
    assert f"QANN {100 * record['accuracy']['qann']:.2f} %" in done.stdout
    assert "SETTLED" in done.stdout

    given = ("--ann", f"{model_file}:build", "--weights", trained, "--energy-images", "0", "--out", "beside.json")
    done = spikezip("run", "a.spikezip", "--data", "digits", "--steps", "24", *given)
    assert done.exit_code == 0, done.stderr
    beside = json.loads(Path("beside.json").read_text())
    assert f"ANN {100 * beside['accuracy']['ann']:.2f} %" in told[0]
    assert beside["accuracy"]["snn"] == record["accuracy"]["snn"]
    Path("beside.json").unlink()

    done = spikezip("verify", "a.spikezip", "--data", "digits")
    assert done.exit_code == 0, done.stderr
    certificate = json.loads(Path("certificate.json").read_text())
    assert certificate["equal"]
    assert certificate["images"] == 359
    assert certificate["mismatches"] == 0
    assert "equal: 0 codes differ on 359 images" in done.stdout

    done = spikezip("report", "record.json")
    assert done.exit_code == 0, done.stderr
    page = Path("report.html").read_text()
    assert "<svg" in page
    assert "Equal to its quantized network (QANN)" in page
    assert sorted(p.name for p in Path().iterdir()) == ["a.spikezip", "certificate.json", "record.json", "report.html"]


def test_what_is_done_to_pixels_is_said_and_chosen(spikezip, model_file, trained, tmp_path):
    """The same images as an .npz of pixels in 0..16, which another normalisation brings to those it was trained on."""
    from sklearn.datasets import load_digits

    import spikezip as library
    from spikezip.data import open_data

    told: Any = load_digits()
    usual = open_data("digits")
    np.savez(tmp_path / "raw.npz", images=told.images.astype("float32"), labels=told.target)
    convert = ("convert", f"{model_file}:build", "--weights", trained, "--data", tmp_path / "raw.npz")
    plain = spikezip(*convert, "--out", "plain.spikezip")
    assert plain.exit_code == 0, plain.stderr
    told = " ".join(plain.stderr.split())
    assert f"Pixels are taken as they are, as {model_file}:build wants them; if" in told, "its weights say so, of 0..1"
    assert "give --mean and --std" in told
    mean, std = 16 * usual.mean[0], 16 * usual.std[0]
    done = spikezip(*convert, "--mean", mean, "--std", std, "--out", "right.spikezip")
    assert done.exit_code == 0, done.stderr
    assert f"Pixels are normalised with mean {mean:.4g} and std {std:.4g}, as asked." in done.stderr
    right, wrong = (float(re.findall(r": ANN ([\d.]+) %", each.stdout)[0]) for each in (done, plain))
    assert right > 90 > wrong
    assert library.load("right.spikezip").note("mean") == [mean]
    done = spikezip("run", "right.spikezip", "--data", tmp_path / "raw.npz", "--limit", "100")
    assert json.loads(Path("record.json").read_text())["accuracy"]["qann"] > 0.9, "the bundle knows"
    for wrong, said in (("a,b", "--mean 'a,b': give one number"), ("0,0,0", "each of its 1 channels")):
        done = spikezip(*convert, "--mean", wrong, "--out", "bad.spikezip")
        assert done.exit_code != 0
        assert said in done.stderr


@pytest.mark.parametrize(
    ("dtype", "given", "said"),
    [
        ("float32", ("--mean", 0, "--std", 1), "taken as they are, as asked."),
        ("uint8", ("--mean", 0, "--std", 1), "taken as they are, in 0..1, as asked."),
        ("uint8", ("--mean", 0.25), "normalised with mean 0.25, as asked, and std 1, as is usual for raw.npz; if"),
        ("uint8", ("--std", 2), "normalised with mean 0, as is usual for raw.npz, and std 2, as asked; if"),
    ],
)
def test_what_was_asked_of_pixels_and_what_is_usual_is_told_apart(spikezip, model_file, dtype, given, said):
    labels = np.arange(40) % 4
    np.savez("raw.npz", images=np.zeros((40, 8, 8), dtype), labels=labels)
    choices = ("--check", 0, "--calibration", 4, "--out", "a.spikezip")
    done = spikezip("convert", f"{model_file}:build", "--data", "raw.npz", *choices, *given)
    assert done.exit_code == 0, done.stderr
    assert said in " ".join(done.stderr.split())


def test_a_bundle_saved_in_python_says_nothing_of_pixels_so_run_and_verify_do(spikezip, model_file):
    """Here pixels of 0..16 are to be divided by 16, and the usual of an .npz is to leave them."""
    import spikezip as library
    from spikezip.data import open_data

    data = open_data("digits")
    raw = {split: data.tensors(split)[0].numpy() * 16 for split in ("trainval", "test")}
    labels = {split: data.labels(split).numpy() for split in raw}
    np.savez("raw.npz", x_train=raw["trainval"], y_train=labels["trainval"], x_test=raw["test"], y_test=labels["test"])
    model = runpy.run_path(str(model_file))["build"]().eval()
    snn = library.convert(model, data.calibration(1), data.calibration(64))
    snn.save("python.spikezip")
    answers = snn.qann(data.tensors("test", 40)[0]).argmax(1)
    right = float((answers == data.labels("test")[:40]).double().mean())
    few = ("--data", "raw.npz", "--limit", 40, "--overwrite")
    for verb in ("run", "verify"):
        done = spikezip(verb, "python.spikezip", *few)
        assert done.exit_code == 0, done.stderr
        assert "Pixels are taken as they are, as is usual for raw.npz; if" in done.stderr
        done = spikezip(verb, "python.spikezip", *few, "--mean", 0, "--std", 16)
        assert done.exit_code == 0, done.stderr
        assert "Pixels are normalised with mean 0 and std 16, as asked." in done.stderr
    done = spikezip("run", "python.spikezip", *few, "--mean", 0, "--std", 16)
    assert json.loads(Path("record.json").read_text())["accuracy"]["qann"] == right


def test_engines_agree_and_a_limit_limits(spikezip, model_file, trained):
    spikezip("convert", f"{model_file}:build", "--weights", trained, "--data", "digits", "--out", "a.spikezip")
    found = []
    for engine in ("sweep", "reference"):
        out = f"{engine}.json"
        args = ("--data", "digits", "--steps", 9, "--limit", 50, "--engine", engine, "--out", out)
        done = spikezip("run", "a.spikezip", *args)
        assert done.exit_code == 0, done.stderr
        found.append(json.loads(Path(out).read_text()))
    assert [record["data"]["images"] for record in found] == [50, 50]
    assert found[0]["accuracy"] == found[1]["accuracy"]
    assert [layer["spikes"] for layer in found[0]["layers"]] == [layer["spikes"] for layer in found[1]["layers"]]


def test_early_exit_by_rules_given_and_chosen(spikezip, model_file, trained):
    spikezip("convert", f"{model_file}:build", "--weights", trained, "--data", "digits", "--out", "a.spikezip")
    rules = ("--early-exit", "margin:0.5", "--early-exit", "entropy", "--early-exit", "settled")
    done = spikezip("run", "a.spikezip", "--data", "digits", "--steps", "24", *rules)
    assert done.exit_code == 0, done.stderr
    record = json.loads(Path("record.json").read_text())
    given, chosen, settled = record["early_exit"]
    assert [given["rule"], chosen["rule"], settled["rule"]] == ["margin", "entropy", "settled"]
    assert given["threshold"] == 0.5 and 0 < chosen["threshold"] < 1 and settled["threshold"] is None
    assert settled["accuracy"] == record["accuracy"]["qann"]
    assert settled["mean_step"] == record["settled"]["t_eq_mean"] > chosen["mean_step"]
    assert "early exit by margin:0.5" in done.stdout
    done = spikezip("report", "record.json")
    assert done.exit_code == 0, done.stderr

    for split in ("val", "trainval"):
        done = spikezip(
            "run", "a.spikezip", "--data", "digits", "--split", split, "--early-exit", "margin", "--overwrite"
        )
        assert done.exit_code == 2 and "cannot be judged on them" in done.stderr
    done = spikezip("run", "a.spikezip", "--data", "digits", "--early-exit", "sure:1", "--overwrite")
    assert done.exit_code == 2 and "no exit rule 'sure:1'" in done.stderr


def test_a_chosen_threshold_that_keeps_no_accuracy_says_what_it_loses(monkeypatch, capsys):
    """The softmax of 2,000 against 0 is 1 exactly, while the first image's answer is still wrong."""
    logits = torch.tensor([[[2000.0, 0.0], [0.0, 1.0]], [[0.0, 2.0], [0.0, 1.0]]])
    run = Run((logits,), torch.tensor([2, 2]), Outcome.SETTLED, {"all": torch.ones(2, 2)}, {}, {}, 1, "sweep")
    monkeypatch.setattr(sys.modules["spikezip.measure"], "exit_run", lambda *_, **__: run)
    data = SimpleNamespace(tensors=lambda *_: (torch.zeros(2, 1), torch.tensor([1, 1])))
    exit_point(run, torch.tensor([1, 1]), exit_rule("margin", None, data, 2, "test"))  # type: ignore[arg-type]
    assert "Every threshold of margin loses 50.00 points or more on the val images" in capsys.readouterr().err


def test_too_few_steps_say_so(spikezip, model_file, trained):
    spikezip("convert", f"{model_file}:build", "--weights", trained, "--data", "digits", "--out", "a.spikezip")
    done = spikezip("run", "a.spikezip", "--data", "digits", "--steps", "1")
    assert done.exit_code == 0, done.stderr
    assert "STEP_LIMIT: the steps ran out" in done.stdout


def test_choices_of_convert_reach_the_network(spikezip, model_file, trained):
    import spikezip as library

    choices = ("--levels", "4", "--encoding", "even:5", "--pool", "average", "--calibration", "64", "--seed", "3")
    done = spikezip("convert", f"{model_file}:build", "--weights", trained, "--data", "digits", "--out", "b", *choices)
    assert done.exit_code == 0, done.stderr
    snn = library.load("b")
    assert {neuron.levels for _, neuron in snn.layers} == {library.Levels(0, 3)}
    assert snn.encoding == library.Even(5)


def test_weights_fitted_for_a_step(spikezip, model_file, trained):
    import spikezip as library

    convert = ("convert", f"{model_file}:build", "--weights", trained, "--data", "digits", "--levels", "4")
    done = spikezip(*convert, "--initial-code", "1", "--fit-steps", "0,1", "--out", "two.spikezip")
    assert done.exit_code == 0, done.stderr
    told = re.search(r"integer QANN [\d.]+ %, SNN at t = 2 ([\d.]+) %", " ".join(done.stdout.split()))
    assert told is not None and float(told[1]) > 50
    assert library.load("two.spikezip").initial_code == 1
    for wrong, message in (("two", "--fit-steps 'two': give a number"), ("0,0", "not 0 all of them")):
        done = spikezip(*convert, "--fit-steps", wrong, "--out", "wrong.spikezip")
        assert done.exit_code == 2 and message in " ".join(done.stderr.split())
    done = spikezip(*convert, "--fit-steps", "0,1", "--keep-weights", "--out", "wrong.spikezip")
    assert done.exit_code == 2 and "fit_steps does not go together with this refit" in " ".join(done.stderr.split())


def test_answers_with_the_batch_behind_the_classes(spikezip, model_file):
    common = ("--data", "digits", "--out")
    done = spikezip("convert", f"{model_file}:batch_last", *common, "last.spikezip")
    assert done.exit_code == 0, done.stderr
    told = re.search(r"ANN ([\d.]+) %, QANN ([\d.]+) %, integer QANN ([\d.]+) %", done.stdout)
    assert told is not None, done.stderr
    beside = ("--ann", f"{model_file}:batch_last", "--energy-images", "0")
    done = spikezip("run", "last.spikezip", *beside, *common, "last.json")
    assert done.exit_code == 0, done.stderr
    accuracy = json.loads(Path("last.json").read_text())["accuracy"]
    assert (told[1], told[3]) == tuple(f"{100 * accuracy[stage]:.2f}" for stage in ("ann", "qann"))
    first = spikezip("convert", f"{model_file}:build", *common, "first.spikezip")
    assert told[0] in first.stdout


@pytest.mark.filterwarnings("default")
def test_what_the_library_warns_of_is_a_message(spikezip, model_file, trained):
    common = (f"{model_file}:build", "--weights", trained, "--data", "digits", "--calibration", "64", "--check", "0")
    done = spikezip("convert", *common, "--levels", "2", "--weight-bits", "2", "--keep-weights", "--out", "b.spikezip")
    assert done.exit_code == 0
    told = [line for line in done.stderr.splitlines() if line.startswith("warning: Weights of 2 bits change")]
    assert len(told) == 1, done.stderr
    assert "UserWarning" not in done.stderr


@pytest.mark.parametrize(("function", "answer"), [("maps", "[10, 8, 8]"), ("flat", "[]"), ("five", "[5]")])
def test_a_network_that_is_no_classifier_is_converted_without_an_accuracy(spikezip, model_file, function, answer):
    done = spikezip("convert", f"{model_file}:{function}", "--data", "digits", "--out", "maps.spikezip")
    assert done.exit_code == 0, done.stderr
    assert "No accuracy" in done.stderr and f"{answer} an image" in done.stderr
    assert "Next: spikezip run maps.spikezip" in done.stdout
    done = spikezip("run", "maps.spikezip", "--data", "digits", "--ann", f"{model_file}:{function}", "--limit", "4")
    assert done.exit_code == (2 if function == "five" else 0), (
        done.stderr,
        done.exception,
    )


def test_a_bundle_refuses_images_of_another_kind(spikezip, model_file, trained, data_root):
    spikezip("convert", f"{model_file}:build", "--weights", trained, "--data", "digits", "--out", "a.spikezip")
    done = spikezip("run", "a.spikezip", "--data", "cifar10", "--data-root", data_root)
    assert done.exit_code == 2
    assert "images of 1 channels; those of cifar10 have 3" in done.stderr
    assert not Path("record.json").exists()


def test_a_current_that_lasts_as_long_as_the_run_is_verified_over_its_steps(spikezip, model_file, trained):
    given = ("--weights", trained, "--data", "digits", "--out", "a.spikezip", "--encoding", "constant")
    assert spikezip("convert", f"{model_file}:build", *given).exit_code == 0
    few = ("--data", "digits", "--limit", "4", "--steps", "64")
    assert spikezip("verify", "a.spikezip", *few[:4]).exit_code == 2
    done = spikezip("verify", "a.spikezip", *few)
    assert done.exit_code in (0, 1), done.exception
    found = json.loads(Path("certificate.json").read_text())
    assert found["bound"] > 64
    done = spikezip("run", "a.spikezip", "--verify", "--energy-images", "0", *few)
    assert done.exit_code == 0, done.exception
    assert json.loads(Path("record.json").read_text())["certificate"]["bound"] == found["bound"]


def test_a_damaged_bundle_is_refused(spikezip, model_file, trained):
    spikezip("convert", f"{model_file}:build", "--weights", trained, "--data", "digits", "--out", "a.spikezip")
    whole = Path("a.spikezip").read_bytes()
    Path("half.spikezip").write_bytes(whole[: len(whole) // 2])
    done = spikezip("verify", "half.spikezip", "--data", "digits")
    assert done.exit_code == 2, done.exception
    assert "half.spikezip" in done.stderr


def test_a_certificate_of_too_few_steps_says_that_they_ran_out(spikezip, model_file, trained):
    spikezip("convert", f"{model_file}:build", "--weights", trained, "--data", "digits", "--out", "a.spikezip")
    done = spikezip("verify", "a.spikezip", "--data", "digits", "--limit", 50, "--steps", 6)
    assert done.exit_code == 1, done.stderr
    at = json.loads(Path("certificate.json").read_text())["settled_at"]
    assert at["unsettled"] > 0
    assert f"not settled: {at['unsettled']} of 50 images need more than 6 steps (" in done.stdout
    assert "give more --steps" in " ".join(done.stdout.split()) and "different" not in done.stdout


@pytest.mark.slow
def test_the_demo_keeps_its_promises(spikezip):
    done = spikezip("demo", "--out", "demo")
    assert done.exit_code == 0, (done.stderr, done.exception)
    written = sorted(p.name for p in Path("demo").iterdir())
    assert written == ["certificate.json", "record.json", "report.html", "snn.spikezip"]
    record = json.loads(Path("demo/record.json").read_text())
    certificate = json.loads(Path("demo/certificate.json").read_text())
    assert record["accuracy"]["ann"] >= 0.98
    assert record["accuracy"]["snn"][1] >= 0.97
    assert record["accuracy"]["snn"][-1] == record["accuracy"]["qann"]
    assert certificate["equal"]
    assert certificate["images"] == record["data"]["images"] == 359
    assert "PET" in done.stdout


def test_energies_are_printed_in_readable_units_and_what_is_missing_is_named(capsys):
    model = {"name": "a chip", "snn_pj": [1.0, 4.1e9], "qann_pj": None}
    energy = {"images": 4, "models": [model], "uncounted": ["softmax: exp"], "cautions": ["Weights are floats."]}
    show_energy({"energy": energy, "synops": [1.0, 69.0]})
    said, noted = capsys.readouterr()
    assert "4.1 mJ" in said
    assert "Weights are floats." in noted
    assert "69 synaptic operations an image. Not counted: softmax: exp." in " ".join(said.split())


@pytest.mark.parametrize(
    ("engine", "exactness", "rounds"),
    [("sweep", None, True), ("reference", None, False), ("sweep", [{"name": "head"}], False)],
)
def test_floats_that_settled_in_another_engine_are_said_to_be_rounded(capsys, engine, exactness, rounds):
    settled = {"outcome": "SETTLED", "t_eq_max": None}
    show({"data": {"name": "digits"}, "engine": engine, "exactness": exactness, "settled": settled})
    said = " ".join(capsys.readouterr().out.split())
    assert "these are the quantized network's outputs" in said
    assert ("but for the rounding of floats" in said) is rounds


def test_square_brackets_of_paths_are_no_markup(capsys):
    screen.say("[bold]runs/v[best].spikezip[/]: [/a] of net[v2].py:cat: [bold green]equal[/]")
    table = Table(title="net[v2].py:net")
    table.add_column("what")
    table.add_row("[red]refused[/]: [/b]")
    screen.stdout.print(table)
    said = capsys.readouterr().out
    assert "runs/v[best].spikezip: [/a] of net[v2].py:cat: equal\n" in said
    assert "net[v2].py:net" in said
    assert "refused: [/b]" in said


def test_tags_and_brackets_in_what_a_user_named_are_no_markup(capsys):
    screen.say(f"[bold]{screen.literal('v[bold]/n[/].spikezip')}[/]: {screen.literal('[red]x[v2]')} [bold]equal[/]")
    screen.stdout.print(Table("what became of it", title=screen.literal("data[dim]set")))
    said = capsys.readouterr().out
    assert "v[bold]/n[/].spikezip: [red]x[v2] equal\n" in said
    assert "data[dim]set" in said


def test_the_next_command_can_be_pasted(spikezip, model_file):
    out = "ü [bold] it's.spikezip"
    done = spikezip("convert", f"{model_file}:build", "--data", "digits", "--check", "0", "--out", out)
    assert done.exit_code == 0, done.stderr
    assert f"{out}: " in done.stdout
    following = done.stdout.partition("Next: spikezip ")[2]
    done = spikezip(*shlex.split(following), "--limit", "2", "--steps", "2", "--out", "[dim] 1.json")
    assert done.exit_code == 0, done.stderr
    assert "[dim] 1.json holds the record" in " ".join(done.stdout.split())
    following = done.stdout.partition("Next: spikezip ")[2]
    assert spikezip(*shlex.split(following)).exit_code == 0
    assert {path.name for path in Path().iterdir()} == {out, "[dim] 1.json", "report.html"}


def test_run_prices_what_was_counted_with_a_model_of_ones_own(spikezip, model_file, trained):
    spikezip("convert", f"{model_file}:build", "--weights", trained, "--data", "digits", "--out", "a.spikezip")
    Path("my-chip.yaml").write_text("name: my-chip\nsource: a table of ours\nprices: {ac: 1.0, mac: 4.0}\n")
    given = ("--data", "digits", "--steps", "8", "--limit", "8", "--overwrite", "--energy-images")
    done = spikezip("run", "a.spikezip", *given, "2", "--energy-model", "my-chip.yaml")
    assert done.exit_code == 0, done.stderr
    energy = json.loads(Path("record.json").read_text())["energy"]
    (model,) = energy["models"]
    assert energy["images"] == 2
    assert model["name"] == "my-chip"
    counts = {row["name"]: row for row in energy["counts"]}
    assert model["qann_pj"] == pytest.approx(counts["ac"]["qann"] + 4 * counts["mac"]["qann"])
    assert f"{model['snn_pj'][-1] / model['qann_pj']:.3g} times" in done.stdout
    done = spikezip("run", "a.spikezip", *given, "0")
    assert done.exit_code == 0, done.stderr
    assert json.loads(Path("record.json").read_text())["energy"] is None
    done = spikezip("run", "a.spikezip", *given, "2", "--energy-model", "abacus")
    assert done.exit_code == 2
    assert "There is no energy model 'abacus'" in done.stderr
