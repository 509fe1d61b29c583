"""``spikezip train``: recipes through the command line, in one process and in two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spikezip.cli import sources
from spikezip.cli.sources import open_teacher
from spikezip.data import open_data
from spikezip.errors import InputError
from spikezip.models import resolve

RECIPE = """
name: digits-pet
stage: pet
model: spikezip:digits
data: digits
epochs: 2
train_images: 512
levels: 4
encoding: even:4
optimizer: {sgd: {rate: 0.02}}
tensorboard: true
"""


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "pet.yaml"
    path.write_text(RECIPE)
    return path


def test_pet_leaves_a_network_that_runs_with_its_encoding(spikezip, recipe):
    import spikezip as library

    done = spikezip("train", recipe, "--out", "pet")
    assert done.exit_code == 0, (done.stderr, done.exception)
    assert "validation accuracy/rescaled2" in done.stdout
    assert {"checkpoint.safetensors", "history.json", "network.safetensors", "snn.spikezip", "tensorboard"} == {
        path.name for path in Path("pet").iterdir()
    }
    assert any(Path("pet/tensorboard").iterdir())
    snn = library.load("pet/snn.spikezip")
    assert snn.encoding == library.Even(4)
    assert snn.note("weight_bits") == 8
    assert snn.note("fine_tuning") == "pet"
    assert snn.note("mean") is not None, "the bundle knows how its images are normalised"
    assert "as is usual for digits; if the model was trained otherwise, give 'mean:'" in done.stderr
    assert spikezip("verify", "pet/snn.spikezip", "--data", "digits", "--limit", 40).exit_code == 0


def test_a_recipe_s_seed_can_be_another(spikezip, recipe):
    recipe.write_text(RECIPE.replace("epochs: 2", "epochs: 1").replace("images: 512", "images: 128") + "seed: 3\n")
    for folder, seed in (("recipe", ()), ("same", ("--seed", 3)), ("other", ("--seed", 4))):
        assert spikezip("train", recipe, "--out", folder, *seed).exit_code == 0
    recipe_s, same, other = (load_file(f"{run}/network.safetensors") for run in ("recipe", "same", "other"))
    assert all(recipe_s[name].equal(same[name]) for name in recipe_s)
    assert any(not recipe_s[name].equal(other[name]) for name in recipe_s)
    refused = spikezip("train", recipe, "--out", "other", "--resume")
    assert refused.exit_code == 2
    assert "seed differ" in refused.stderr


def test_a_recipe_goes_on_from_the_trained_weights_of_another(spikezip, recipe, tmp_path):
    import spikezip as library

    assert spikezip("train", recipe, "--out", "pet").exit_code == 0
    on = tmp_path / "on.yaml"
    small = RECIPE.replace("stage: pet", "stage: speq").replace("rate: 0.02", "rate: 1.0e-9")
    on.write_text(small + "start: pet/network.safetensors\n")
    done = spikezip("train", on, "--out", "on")
    assert done.exit_code == 0, (done.stderr, done.exception)
    before, after = (load_file(f"{run}/network.safetensors") for run in ("pet", "on"))
    assert all((before[name] - after[name]).abs().max() < 1e-6 for name in before if before[name].is_floating_point())
    snn = library.load("on/snn.spikezip")
    assert (snn.encoding, snn.note("fine_tuning")) == (library.Even(4), "speq")
    moved = {name: t + 1 if t.is_floating_point() else t for name, t in before.items()}
    save_file(moved, "moved.safetensors")
    on.write_text(small + "start: [pet/network.safetensors, moved.safetensors]\n")
    assert spikezip("train", on, "--out", "mean").exit_code == 0
    mean = load_file("mean/network.safetensors")
    assert all((before[n] + 0.5 - mean[n]).abs().max() < 1e-5 for n in before if before[n].is_floating_point())
    on.write_text(small + "start: pet/network.safetensors\nstart_scale: 1.5\n")
    assert spikezip("train", on, "--out", "larger").exit_code == 0
    larger = load_file("larger/network.safetensors")
    for name, tensor in before.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(larger[name], tensor * 1.5 if name.endswith(".scale") else tensor)
    on.write_text(small + "start: pet/none.safetensors\n")
    refused = spikezip("train", on, "--out", "none")
    assert refused.exit_code == 2
    assert "There is no file" in refused.stderr


def test_a_recipe_begins_with_refitted_weights(spikezip, recipe):
    still = RECIPE.replace("rate: 0.02", "rate: 1.0e-9").replace("epochs: 2", "epochs: 1")
    recipe.write_text(still)
    assert spikezip("train", recipe, "--out", "plain").exit_code == 0
    recipe.write_text(still + "refit: true\n")
    assert spikezip("train", recipe, "--out", "refitted").exit_code == 0
    plain, refitted = (load_file(f"{run}/network.safetensors") for run in ("plain", "refitted"))
    moved = [name for name in plain if "weight" in name and (plain[name] - refitted[name]).abs().max() > 1e-3]
    assert moved, "the first layer hears what it always heard, the others do not"


def test_it_goes_on_from_learned_bias_shares_too(spikezip, recipe):
    import spikezip as library

    small = RECIPE.replace("epochs: 2", "epochs: 1").replace("images: 512", "images: 128")
    learned = "steps: [0, 1, 1, 1]\nbias_shares: learned\nbatch: 8\n"
    learning = small.replace("stage: pet", "stage: trajectory") + learned
    recipe.write_text(learning.replace("rate: 0.02", "rate: 0.5"))
    assert spikezip("train", recipe, "--out", "first").exit_code == 0
    recipe.write_text(learning.replace("rate: 0.02", "rate: 1.0e-9") + "start: first/network.safetensors\n")
    assert spikezip("train", recipe, "--out", "second").exit_code == 0
    first, second = (library.load(f"{run}/snn.spikezip").bias_encoding for run in ("first", "second"))
    assert first == second
    assert first.share(1, 4) != 0.25, "the shares have been trained"


def test_a_folder_that_is_taken_is_refused_resumed_or_overwritten(spikezip, recipe):
    assert spikezip("train", recipe, "--out", "pet").exit_code == 0
    before = load_file("pet/network.safetensors")
    refused = spikezip("train", recipe, "--out", "pet")
    assert refused.exit_code == 2
    assert "is not empty" in refused.stderr
    assert spikezip("train", recipe, "--out", "pet", "--resume").exit_code == 0
    after = load_file("pet/network.safetensors")
    assert all((before[name] == after[name]).all() for name in before)
    assert spikezip("train", recipe, "--out", "pet", "--overwrite").exit_code == 0


def test_a_recipe_s_normalisation_is_used_kept_and_asked_for_again(spikezip, recipe):
    import spikezip as library

    recipe.write_text(RECIPE + "mean: [0.25]\nstd: [0.5]\n")
    done = spikezip("train", recipe, "--out", "pet")
    assert done.exit_code == 0, done.stderr
    assert "mean 0.25 and std 0.5, as asked" in done.stderr
    assert library.load("pet/snn.spikezip").note("mean") == [0.25]
    recipe.write_text(RECIPE)
    done = spikezip("train", recipe, "--out", "pet", "--resume")
    assert done.exit_code != 0
    assert "normalisation differ" in " ".join(done.stderr.split())


def test_a_live_batch_norm_is_kept_to_go_on_from(spikezip, tmp_path):
    live = (
        "name: a\nstage: trajectory\nmodel: spikezip:digits\ndata: digits\ntrain_images: 128\nlevels: 4\n"
        "steps: [0, 1]\nmorph: {batch_norm: live}\noptimizer: {adamw: {rate: 0.01, weight_decay: 0}}\n"
    )
    Path("live.yaml").write_text(live)
    assert spikezip("train", "live.yaml", "--out", "first").exit_code == 0
    folded, kept = (load_file(f"first/{name}.safetensors") for name in ("network", "live"))
    assert any(name.endswith("running_mean") for name in kept)
    assert not any(name.endswith("running_mean") for name in folded)
    Path("on.yaml").write_text(live.replace("rate: 0.01", "rate: 1.0e-9") + "start: first/live.safetensors\n")
    on = spikezip("train", "on.yaml", "--out", "second")
    assert on.exit_code == 0, on.stderr
    after = load_file("second/live.safetensors")
    trained = [name for name in kept if not name.rpartition(".")[2].startswith(("running", "num"))]
    assert all(torch.allclose(after[name], kept[name], atol=1e-6) for name in trained)
    Path("folded.yaml").write_text(live.replace("morph: {batch_norm: live}\n", "").replace("name: a", "name: b"))
    assert spikezip("train", "folded.yaml", "--out", "second", "--overwrite").exit_code == 0
    assert not Path("second/live.safetensors").exists(), "it was another training's"


@pytest.mark.parametrize("model", ["spikezip:digits", "net.py:build"])
def test_trained_weights_say_how_their_pixels_were_normalised(model, spikezip, tmp_path):
    Path("net.py").write_text(
        "from spikezip.models import resolve\n\n\ndef build():\n    return resolve('spikezip:digits').module"
    )
    ann = f"name: a\nstage: ann\nmodel: {model}\ndata: digits\ntrain_images: 64\n"
    Path("ann.yaml").write_text(ann + "mean: [0.25]\nstd: [0.5]\n")
    assert spikezip("train", "ann.yaml", "--out", "ann").exit_code == 0
    qat = ann.replace("stage: ann", "stage: qat") + "weights: ann/network.safetensors\n"
    Path("qat.yaml").write_text(qat)
    done = spikezip("train", "qat.yaml", "--out", "qat")
    assert done.exit_code == 0, done.stderr
    assert f"mean 0.25 and std 0.5, as {model} wants them" in " ".join(done.stderr.split())
    Path("qat.yaml").write_text(qat + "mean: [0.125]\n")
    told = " ".join(spikezip("train", "qat.yaml", "--out", "qat", "--overwrite").stderr.split())
    assert f"mean 0.125, as asked, and std 0.5, as {model} wants them" in told


def test_without_a_folder_it_says_how_to_name_one(spikezip, recipe):
    done = spikezip("train", recipe)
    assert done.exit_code == 2
    assert "--out" in done.stderr


@pytest.mark.parametrize("stage", ["ann", "qat"])
def test_a_teacher_that_is_random_is_refused(stage, spikezip, tmp_path):
    lines = f"name: a\nstage: {stage}\nmodel: spikezip:digits\ndata: digits\nloss: {{distil: {{}}}}\n"
    (tmp_path / "a.yaml").write_text(lines)
    refused = spikezip("train", tmp_path / "a.yaml", "--out", "a")
    assert refused.exit_code == 2
    assert "at the start, which is random. Give its trained 'weights:'" in " ".join(refused.stderr.split())


def test_a_teacher_whose_classifier_is_random_is_refused(spikezip, tmp_path):
    weights = tmp_path / "seven.safetensors"
    save_file(resolve("spikezip:digits", num_classes=7).module.state_dict(), weights)
    lines = (
        f"name: a\nstage: ann\nmodel: spikezip:digits\ndata: digits\nepochs: 1\ntrain_images: 64\nweights: {weights}\n"
    )
    for loss in ("loss: {distil: {}}\n", ""):
        (tmp_path / "a.yaml").write_text(lines + loss)
        done = spikezip("train", tmp_path / "a.yaml", "--out", "a")
        assert done.exit_code == (2 if loss else 0), done.stderr
        said = "whose classifier is new, and random" in " ".join(done.stderr.split())
        assert said == bool(loss)


def test_another_network_teaches(spikezip, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teacher = resolve("spikezip:digits").module
    torch.nn.init.zeros_(teacher.linear.weight)
    teacher.linear.bias.data = 9 * torch.eye(10)[3]  # it says three, whatever it sees
    save_file(teacher.state_dict(), tmp_path / "three.safetensors")
    lines = "name: a\nstage: ann\nmodel: spikezip:digits\ndata: digits\nepochs: 2\ntrain_images: 512\n"
    lines += "optimizer: {adamw: {rate: 0.01}}\nloss: {distil: {mixed: true}}\nteacher: {model: spikezip:digits"
    recipe.write_text(lines + ", weights: three.safetensors}\n")
    done = spikezip("train", recipe, "--out", "taught")
    assert done.exit_code == 0, (done.stderr, done.exception)
    pupil = resolve("spikezip:digits", weights="taught/network.safetensors").module
    images, _ = open_data("digits").tensors("test", 64)
    assert (pupil(images).argmax(1) == 3).all(), (
        "labels are not learned of mixtures: all that it knows is the teacher's"
    )
    recipe.write_text(lines + "}\n")
    refused = spikezip("train", recipe, "--out", "random")
    assert refused.exit_code == 2
    assert "The teacher spikezip:digits would be random" in " ".join(refused.stderr.split())


def test_a_teacher_that_wants_other_pixels_is_refused():
    images = open_data("digits", mean=[0.5], std=[0.5])
    assert isinstance(open_teacher("spikezip:digits", None, images, None), torch.nn.Module)
    coloured = replace(images, image_shape=(3, 32, 32), mean=(0.25,) * 3, std=(0.5,) * 3)
    with pytest.raises(InputError, match=r"wants pixels with mean 0\.485.* sees them with mean 0\.25"):
        open_teacher("timm:resnet18", None, coloured, None)


def test_a_teacher_for_other_classes_is_refused(monkeypatch):
    found = replace(resolve("spikezip:digits"), new_classifier=True)  # as of a library's weights
    monkeypatch.setattr(sources, "resolve", lambda *args, **others: found)
    with pytest.raises(InputError, match="another number of classes than digits has: its classifier would be random"):
        open_teacher("timm:resnet18", "pretrained", open_data("digits"), None)


def test_a_recipe_s_folder_may_be_in_the_home(spikezip, recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "mine").mkdir(parents=True)
    (tmp_path / "home" / "mine" / "notes.txt").write_text("kept")
    recipe.write_text(RECIPE + "out: ~/mine\n")
    refused = spikezip("train", recipe)
    assert refused.exit_code == 2
    assert "is not empty" in refused.stderr


def test_a_network_with_fewer_outputs_than_classes_is_refused(spikezip, recipe, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\ndef net():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 7))\n"
    )
    recipe.write_text(RECIPE.replace("spikezip:digits", f"{tmp_path / 'mine.py'}:net"))
    refused = spikezip("train", recipe, "--out", "mine")
    assert refused.exit_code == 2
    assert "7 outputs, and digits 10 classes" in " ".join(refused.stderr.split())
    assert not Path("mine").exists()


@pytest.mark.slow
def test_two_processes_train_as_one(spikezip, recipe):
    """The launcher is torch's, which ``accelerate launch`` starts on GPUs; on CPUs without MPI that starts one only."""
    assert spikezip("train", recipe, "--out", "one").exit_code == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "spikezip", "train", str(recipe), "--out", "two"],
        env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("holds the trained weights") == 1, "one process prints"
    losses = [[epoch["loss"] for epoch in json.loads(Path(run, "history.json").read_text())] for run in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert Path("two/snn.spikezip").exists()
