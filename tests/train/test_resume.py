"""A training cut short, and resumed, gives the bits of one that was not."""

from __future__ import annotations

import copy
import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training_nets import chain, pet_plan, resumable_plan, same, small_data

from spikezip import capture, morph, quantize
from spikezip.errors import BundleError, OutputError, RecipeError
from spikezip.levels import Levels
from spikezip.spike import Even
from spikezip.train import (
    QAT,
    SGD,
    AdamW,
    Cooldown,
    CrossEntropy,
    Distil,
    EpochDone,
    Event,
    Plan,
    Saved,
    StepDone,
    Trajectory,
    finetune,
    train,
)
from spikezip.train.checkpoint import Checkpoint, read, write
from spikezip.train.plan import describe

CHILD = """
import os, pathlib, signal, sys
import torch
from spikezip.train import StepDone, train
from training_nets import chain, pet_plan, resumable_plan, small_data

torch.set_num_threads(1)
how, out = sys.argv[1:]
saved = []
write = pathlib.Path.write_bytes

def killed_while_writing(path, data):
    saved.append(path)
    if len(saved) == (1 if how == "while-writing-the-first" else 4):
        write(path, data[:100])
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, data)

def killed_between(event):
    if isinstance(event, StepDone) and (event.epoch, event.step) == (1, 3):
        os.kill(os.getpid(), signal.SIGKILL)

if how != "between":
    pathlib.Path.write_bytes = killed_while_writing
train(chain(), small_data(), resumable_plan(), out=out, on_event=killed_between if how == "between" else None)
"""


@pytest.mark.parametrize("how", ["between", "while-writing", "while-writing-the-first"])
def test_killed_and_resumed_gives_the_same_bits(how: str, tmp_path: Path):
    out = tmp_path / "run"
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, how, str(out)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert (out / "checkpoint.safetensors").is_file() == (how != "while-writing-the-first")
    assert not (out / "network.safetensors").exists()

    with pytest.raises(OutputError, match=r"not empty.*resume"):
        train(chain(), small_data(), resumable_plan(), out=out)
    resumed = train(chain(), small_data(), resumable_plan(), out=out, resume=True)
    whole = train(chain(), small_data(), resumable_plan(), out=tmp_path / "whole")
    assert same(resumed.network, whole.network)
    # The bytes on disk too: average, momentum and where training is.
    first, second = (_checkpoint(folder) for folder in (out, tmp_path / "whole"))
    assert first.tensors.keys() == second.tensors.keys()
    assert any(name.startswith("optimizer/exp_avg/") for name in first.tensors)
    assert all(torch.equal(first.tensors[n], second.tensors[n]) for n in first.tensors)
    assert [replace(r, seconds=0) for r in resumed.history] == [replace(r, seconds=0) for r in whole.history]
    assert not [p.name for p in out.iterdir() if p.name.startswith(".")]
    again = train(chain(), small_data(), resumable_plan(), out=out, resume=True)
    assert same(again.network, whole.network)


def _checkpoint(folder: Path) -> Checkpoint:
    return read(folder / "checkpoint.safetensors")


def test_a_training_under_way_may_be_ended_early(tmp_path: Path):
    def cut_off(event: Event) -> None:
        if isinstance(event, StepDone) and event.epoch == 1:
            raise KeyboardInterrupt

    plan, early = pet_plan(), pet_plan(cooldown=Cooldown(after=1))
    for folder in ("early", "late"):
        with pytest.raises(KeyboardInterrupt):
            train(chain(), small_data(), plan, out=tmp_path / folder, on_event=cut_off)
    resumed = train(chain(), small_data(), early, out=tmp_path / "early", resume=True)
    assert [record.rate for record in resumed.history] == [pytest.approx(0.75), 0.0]
    assert [record.epochs for record in resumed.history] == [3, 2]
    assert same(resumed.network, finetune(chain(), small_data(), early))
    # Once the rate has begun to fall, or the place where it would have is past, it is another training.
    train(chain(), small_data(), plan, out=tmp_path / "late", resume=True)
    for folder, other, said in (("early", plan, "another plan: cooldown"), ("late", early, "past epoch 1.*after=3")):
        with pytest.raises(BundleError, match=said):
            train(chain(), small_data(), other, out=tmp_path / folder, resume=True)


def test_what_changes_no_result_may_change_on_the_way(tmp_path: Path):
    train(chain(), small_data(), pet_plan(epochs=1), out=tmp_path)
    train(chain(), small_data(), pet_plan(epochs=1, accumulate=2, log_every=3, compile=True), out=tmp_path, resume=True)


def test_parts_in_which_images_are_mixed_stay_as_they_are(tmp_path: Path):
    plan = pet_plan(epochs=1, objective=QAT(CrossEntropy(distil=Distil(mixed=True)), chain(seed=1)))
    train(chain(), small_data(), plan, out=tmp_path)
    train(chain(), small_data(), replace(plan, log_every=3), out=tmp_path, resume=True)
    with pytest.raises(BundleError, match="another plan: accumulate differ"):
        train(chain(), small_data(), replace(plan, accumulate=2), out=tmp_path, resume=True)
    with pytest.raises(RecipeError, match="mixes images of one part of a batch; 16 in 16 accumulation steps"):
        train(chain(), small_data(), replace(plan, accumulate=16))


class Own:
    """A user's own objective, which keeps what it trains."""

    def __init__(self, weight: float):
        self.weight, self.kept = weight, None

    def module(self, network: nn.Module) -> nn.Module:
        self.kept = network
        return network

    def loss(self, module: nn.Module, images: Tensor, labels: Tensor):
        loss, numbers = CrossEntropy()(module(images), labels)
        return self.weight * loss, numbers


def test_an_objective_of_ones_own_is_known_again(tmp_path: Path):
    plan = pet_plan(epochs=1, objective=Own(2.0))
    train(chain(), small_data(), plan, out=tmp_path)
    for same_plan in (plan, pet_plan(epochs=1, objective=Own(2.0))):
        train(chain(), small_data(), same_plan, out=tmp_path, resume=True)
    assert describe(plan)["objective"] == {"type": "Own", "weight": 2.0}
    with pytest.raises(BundleError, match="another plan: objective"):
        train(chain(), small_data(), pet_plan(epochs=1, objective=Own(3.0)), out=tmp_path, resume=True)


class Centred(nn.Linear):
    """Keeps a mean of what it sees, and the first that it saw, in buffers that are not persistent."""

    mean: Tensor
    first: Tensor | None

    def __init__(self):
        super().__init__(6, 3)
        self.register_buffer("mean", torch.zeros(6), persistent=False)
        self.register_buffer("first", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(x.detach().mean(0), 0.1)
            self.first = x.detach().mean(0) if self.first is None else self.first
        return super().forward(x - self.mean if self.first is None else x - self.mean - 0.1 * self.first)


class MeanTeacher:
    """An objective whose teacher follows the network."""

    class Both(nn.Module):
        def __init__(self, network: nn.Module):
            super().__init__()
            self.student, self.teacher = network, copy.deepcopy(network).requires_grad_(False)

        def forward(self, images: Tensor):
            if self.training:
                for theirs, mine in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                    theirs.data.lerp_(mine.data, 0.2)
            return self.student(images), self.teacher(images)

    def module(self, network: nn.Module) -> nn.Module:
        return self.Both(network)

    def loss(self, module: nn.Module, images: Tensor, labels: Tensor):
        logits, teacher = module(images)
        return CrossEntropy(distil=Distil())(logits, labels, teacher)


@pytest.mark.parametrize("objective", [QAT(), MeanTeacher()])
def test_what_no_state_dict_of_the_network_has_goes_on_too(objective, tmp_path: Path):
    def stop(event: Event) -> None:
        if isinstance(event, Saved):
            raise KeyboardInterrupt

    torch.manual_seed(0)
    network, plan = Centred(), pet_plan(objective=objective)
    whole = train(network, small_data(), plan)
    with pytest.raises(KeyboardInterrupt):
        train(network, small_data(), plan, out=tmp_path, on_event=stop)
    resumed = train(network, small_data(), plan, out=tmp_path, resume=True)
    assert [replace(r, seconds=0) for r in resumed.history] == [replace(r, seconds=0) for r in whole.history]
    older = _checkpoint(tmp_path)
    for name in [n for n in older.tensors if n.startswith(("buffers/", "objective/teacher."))]:
        del older.tensors[name]
    write(older, tmp_path / "checkpoint.safetensors")
    train(network, small_data(), plan, out=tmp_path, resume=True)


def test_teachers_are_told_apart_by_their_weights(tmp_path: Path):
    def plan(seed: int) -> Plan:
        return pet_plan(epochs=1, objective=QAT(CrossEntropy(distil=Distil()), chain(seed=seed)))

    train(chain(), small_data(), plan(1), out=tmp_path)
    train(chain(), small_data(), plan(1), out=tmp_path, resume=True)
    with pytest.raises(BundleError, match="another plan: objective"):
        train(chain(), small_data(), plan(2), out=tmp_path, resume=True)
    before = read(tmp_path / "checkpoint.safetensors")  # as it was written when weights were not told apart
    before.facts["plan"]["objective"]["teacher"] = type(chain()).__name__
    write(before, tmp_path / "checkpoint.safetensors")
    train(chain(), small_data(), plan(2), out=tmp_path, resume=True)


def test_only_its_own_checkpoints_are_resumed(tmp_path: Path):
    plan = pet_plan(epochs=1)
    train(chain(), small_data(), plan, out=tmp_path)
    with pytest.raises(BundleError, match="another plan: seed"):
        train(chain(), small_data(), replace(plan, seed=3), out=tmp_path, resume=True)
    with pytest.raises(BundleError, match=r"another network: '0\.weight'"):
        train(chain(inputs=9), small_data(), plan, out=tmp_path, resume=True)
    with pytest.raises(BundleError, match=r"another training: levels differ \('1': 0\.\.7 there, -4\.\.3 here\)"):
        train(chain(Levels(-4, 3)), small_data(), plan, out=tmp_path, resume=True)
    other = chain()
    with other.graph.inserting_before(other.graph.output_node()):
        last = other.graph.output_node().args[0]
        other.graph.output_node().args = (other.graph.call_function(torch.relu, (last,)),)
    other.recompile()
    with pytest.raises(BundleError, match="another training: operations differ"):
        train(other, small_data(), plan, out=tmp_path, resume=True)
    with pytest.raises(BundleError, match=r"data differ \(80 images of TensorBatches there, 50 images"):
        train(chain(), replace(small_data(), held_out=70), plan, out=tmp_path, resume=True)
    relabelled = replace(small_data(), labels=small_data().labels.flip(0))
    with pytest.raises(BundleError, match="another training: labels differ"):
        train(chain(), relabelled, plan, out=tmp_path, resume=True)
    older = _checkpoint(tmp_path)
    del older.facts["outline"]["labels"]
    write(older, tmp_path / "checkpoint.safetensors")
    train(chain(), small_data(), plan, out=tmp_path, resume=True)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(BundleError, match="cannot be read as a checkpoint"):
        train(chain(), small_data(), plan, out=tmp_path, resume=True)
    train(chain(), small_data(), plan, out=tmp_path, overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    with pytest.raises(OutputError, match="no checkpoint in it to resume"):
        train(chain(), small_data(), plan, out=tmp_path / "mine", resume=True)
    with pytest.raises(OutputError, match="is a file"):
        train(chain(), small_data(), plan, out=tmp_path / "mine" / "notes.txt")


def test_a_checkpoint_from_before_it_had_an_outline_is_resumed(tmp_path: Path):
    train(chain(), small_data(), pet_plan(epochs=1), out=tmp_path)
    old = _checkpoint(tmp_path)
    del old.facts["outline"]
    write(old, tmp_path / "checkpoint.safetensors")
    train(chain(), small_data(), pet_plan(epochs=1), out=tmp_path, resume=True)


def test_what_is_trained_beside_the_network_is_averaged_with_it(tmp_path: Path):
    """And a checkpoint from before it was is resumed."""
    plan = pet_plan(
        epochs=1, objective=Trajectory((1, 1), Even(2), learn_bias_shares=True), optimizer=AdamW(0.05), ema=0.9
    )
    torch.manual_seed(0)
    ann = capture(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), small_data().images[:1])
    qann = quantize(morph(ann), 4, small_data().images)
    train(qann, small_data(), plan, out=tmp_path)
    found = _checkpoint(tmp_path)
    last, average = (found.tensors[f"{part}objective/bias_shares.reached"] for part in ("", "average/"))
    assert not torch.equal(average, last)
    del found.tensors["average/objective/bias_shares.reached"]
    write(found, tmp_path / "checkpoint.safetensors")
    train(qann, small_data(), plan, out=tmp_path, resume=True)


def test_a_run_that_died_before_its_first_checkpoint_is_begun_anew(tmp_path: Path):
    (tmp_path / "tensorboard").mkdir()
    for draft in (".checkpoint.safetensors-x1", ".history.json-x2"):
        (tmp_path / draft).write_bytes(b"half")
    with pytest.raises(OutputError, match="is not empty"):
        train(chain(), small_data(), pet_plan(epochs=1), out=tmp_path)
    train(chain(), small_data(), pet_plan(epochs=1), out=tmp_path, resume=True)
    assert {p.name for p in tmp_path.iterdir()} == {
        "tensorboard", "checkpoint.safetensors", "history.json", "network.safetensors",
    }  # fmt: skip


def test_what_an_earlier_run_left_goes_when_the_new_one_has_saved(tmp_path: Path):
    old = ("checkpoint.safetensors", "history.json", "network.safetensors", "snn.spikezip", "notes.txt")
    events = tmp_path / "tensorboard" / "events.out.tfevents.1.host.2.0"
    events.parent.mkdir()
    for path in (*(tmp_path / name for name in old), events):
        path.write_text("of the earlier run")
    for plan, words in (
        (pet_plan(batch=90, accumulate=3), "equal parts"),
        (pet_plan(optimizer=SGD(1e30)), "training has diverged"),
    ):
        with pytest.raises(RecipeError, match=words):
            train(chain(), small_data(), plan, out=tmp_path, overwrite=True)
        assert {(tmp_path / name).read_text() for name in old} == {events.read_text()}

    def after_the_first(event: Event) -> None:
        if isinstance(event, Saved):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(chain(), small_data(), pet_plan(), out=tmp_path, overwrite=True, on_event=after_the_first)
    left = {"checkpoint.safetensors", "history.json", "notes.txt", "tensorboard"}
    assert {p.name for p in tmp_path.iterdir()} == left
    assert not events.exists()


def test_a_history_that_stayed_behind_its_checkpoint_is_written_at_the_end(tmp_path: Path, monkeypatch):
    def full(*_: object) -> None:
        raise OutputError("no room")

    with monkeypatch.context() as patched:
        patched.setattr("spikezip.train.checkpoint.write_json", full)
        with pytest.raises(OutputError, match="no room"):
            train(chain(), small_data(), pet_plan(epochs=1), out=tmp_path)
    done = train(chain(), small_data(), pet_plan(epochs=1), out=tmp_path, resume=True)
    assert json.loads((tmp_path / "history.json").read_text()) == [record.as_json() for record in done.history]
    assert len(done.history) == 1


def test_two_trainings_do_not_write_to_one_folder(tmp_path: Path):
    refusals = []

    def another(event: Event) -> None:
        if isinstance(event, EpochDone):  # before the first checkpoint, and after
            with pytest.raises(OutputError, match="Another training is writing to") as refusal:
                train(chain(), small_data(), pet_plan(epochs=1), out=tmp_path, overwrite=True)
            refusals.append(refusal)

    train(chain(), small_data(), pet_plan(epochs=2), out=tmp_path, on_event=another)
    assert len(refusals) == 2
    train(chain(), small_data(), pet_plan(epochs=1), out=tmp_path, overwrite=True)


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"checkpoint' cannot be written: .*No space left.*has room"):
        write(Checkpoint({}, {}), tmp_path / "checkpoint")
    assert not list(tmp_path.iterdir())
