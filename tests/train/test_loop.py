"""The loop: what it leaves alone, what it gives, what it refuses."""

from __future__ import annotations

import functools
import json
import math
import re
import threading
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from training_nets import chain, classes_apart, clusters, pet_plan, residual, residual_data, same, small_data

from spikezip import capture, morph, quantize, spike, to_integer
from spikezip.errors import DataError, InputError, RecipeError, StageError, UnknownNameError
from spikezip.export import load_bundle, save_bundle
from spikezip.graph.network import fork, remark
from spikezip.levels import Levels
from spikezip.morph import BatchNorm, Morph
from spikezip.quantize import Quantizer
from spikezip.spike import Pulse, Shares
from spikezip.train import (
    PET,
    QAT,
    SGD,
    SPEQ,
    AdamW,
    Capped,
    Cooldown,
    CrossEntropy,
    Distil,
    EpochDone,
    HardLabels,
    InTurn,
    Lines,
    MainLabels,
    Penalty,
    PETLoss,
    Plan,
    Precision,
    ProgressBar,
    StepDone,
    TeacherLabels,
    TensorBatches,
    TensorBoard,
    Trajectory,
    finetune,
    soup,
    train,
)

PET_PATHS = (Capped(1), Capped(2))


def test_a_new_network_comes_back_and_the_given_one_keeps_every_bit():
    network = chain()
    before = {n: t.clone() for n, t in network.state_dict().items()}
    random = torch.get_rng_state()
    trained = finetune(network, small_data(), pet_plan())
    assert isinstance(trained, fx.GraphModule)
    assert not trained.training
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert not any(torch.equal(t, before[n]) for n, t in trained.state_dict().items() if t.is_floating_point())
    assert torch.equal(torch.get_rng_state(), random), "training must not touch the user's random numbers"


@pytest.mark.parametrize(
    "objective",
    [
        QAT(),
        QAT(CrossEntropy(smoothing=0.1, distil=Distil(0.5, 2.0)), teacher=classes_apart()),
        PET(PET_PATHS),
        PET(PET_PATHS, PETLoss(0.5, 0.5, MainLabels(2.0)), InTurn()),
        PET(PET_PATHS, PETLoss(0.5, 0.0, TeacherLabels(), distil=Distil()), teacher=classes_apart()),
        PET(PET_PATHS, PETLoss(0.5, 0.0, TeacherLabels(), distil=Distil(mixed=True)), teacher=classes_apart()),
    ],
    ids=["qat", "qat-taught", "pet", "pet-main-labels", "pet-teacher", "pet-mixed"],
)
def test_every_objective_learns(objective):
    done = train(chain(), small_data(), pet_plan(objective=objective, epochs=4))
    first, last = done.history[0], done.history[-1]
    assert last.loss < first.loss
    assert last.validation["accuracy"] > 0.9
    if isinstance(objective, PET):
        assert last.validation["accuracy/capped2"] > 0.6
        assert {"loss", "accuracy", "loss/capped1", "accuracy/capped1"} <= last.validation.keys()


def test_what_the_author_froze_is_not_trained():
    images = small_data().images
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    model[0].requires_grad_(False)
    qann = quantize(morph(capture(model.eval(), images[:1])), 8, images)
    before, after = qann.state_dict(), finetune(qann, small_data(), pet_plan(epochs=1)).state_dict()
    kept = {n for n, t in before.items() if n.endswith(("weight", "bias")) and torch.equal(t, after[n])}
    assert kept == {"0.weight", "0.bias"}
    frozen = quantize(morph(capture(model.requires_grad_(False), images[:1])), 8, images)
    with pytest.raises(StageError, match=r"no weight to train"):  # its scales alone would be
        finetune(frozen, small_data(), pet_plan())
    assert all(torch.equal(t, before[n]) for n, t in frozen.state_dict().items()), (
        "frozen or not, it is quantized alike"
    )
    assert same(
        finetune(frozen.requires_grad_(True), small_data(), pet_plan(objective=QAT())),
        finetune(qann.requires_grad_(True), small_data(), pet_plan(objective=QAT())),
    )


def test_the_teacher_is_not_changed():
    teacher = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3))
    before = {n: t.clone() for n, t in teacher.state_dict().items()}
    objective = QAT(CrossEntropy(distil=Distil()), teacher=teacher)
    trained = finetune(chain(), small_data(), pet_plan(objective=objective, epochs=1))
    assert all(torch.equal(t, before[n]) for n, t in teacher.state_dict().items())
    assert trained.state_dict().keys() == chain().state_dict().keys()


def test_of_mixed_images_the_teacher_alone_is_learned():
    student, teacher = chain(), classes_apart()
    objective = QAT(CrossEntropy(distil=Distil(3.0, 2.0, mixed=True)), teacher=teacher)
    images, labels = next(small_data().batches("train", 8))
    module = objective.module(student).train()
    torch.manual_seed(1)
    loss, numbers = objective.loss(module, images, labels)
    torch.manual_seed(1)
    share = torch.rand(8, 1) / 2 + 0.5
    seen = share * images + (1 - share) * images.flip(0)
    wanted, given = (F.softmax(z / 2, -1) for z in (teacher(seen), student(seen)))
    assert loss.item() == pytest.approx((12 * (wanted * (wanted / given).log()).sum(-1).mean()).item(), rel=1e-5)
    assert float(numbers["accuracy"]) == float((student(seen).argmax(-1) == labels).float().mean())
    # where nothing is trained, images are as they are
    loss, _ = objective.loss(module.eval(), images, labels)
    wanted, given = (F.softmax(z / 2, -1) for z in (teacher(images), student(images)))
    assert loss.item() == pytest.approx((12 * (wanted * (wanted / given).log()).sum(-1).mean()).item(), rel=1e-5)


def test_images_that_cannot_be_mixed_are_refused():
    objective = QAT(CrossEntropy(distil=Distil(mixed=True)), teacher=chain())
    module = objective.module(chain()).train()
    for images, what in ((torch.ones(4, 6).int(), "torch.int32"), (torch.ones(3, 4, 6), "(3, 4, 6)"), ((), "tuple")):
        with pytest.raises(StageError, match=re.escape(what)):
            objective.loss(module, images, torch.zeros(4).long())
    for make in (
        lambda: Distil(0.0, mixed=True),
        lambda: CrossEntropy(0.1, Distil(mixed=True)),
        lambda: PETLoss(distil=Distil(mixed=True)),
        lambda: PETLoss(1.0, 0.5, MainLabels(), distil=Distil(mixed=True)),
    ):
        with pytest.raises(RecipeError, match="f mixed images"):
            make()


def test_pet_without_sub_paths_is_qat():
    plan = pet_plan(epochs=1)
    pet = finetune(chain(), small_data(), replace(plan, objective=PET(())))
    assert same(pet, finetune(chain(), small_data(), replace(plan, objective=QAT())))


@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_a_network_that_keeps_what_it_computed():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head, self.seen = nn.Linear(6, 8), nn.utils.weight_norm(nn.Linear(8, 3)), []

        def forward(self, x: Tensor) -> Tensor:
            self.seen = [self.body(x).relu()]
            return self.head(self.seen[0])

    model = Keeps()
    model(small_data().images)
    seen = model.seen[0]
    objective = QAT(CrossEntropy(distil=Distil()), teacher=model)
    trained = finetune(model, small_data(), pet_plan(objective=objective, epochs=1))
    assert model.seen[0] is seen and seen.grad_fn is not None, "the given one is not changed"
    assert not torch.equal(trained.body.weight, model.body.weight)
    assert torch.equal(soup([trained, trained]).body.weight, trained.body.weight)
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(StageError, match=r"This Keeps cannot be copied: .*lock.*\nRemove what its attributes keep"):
        finetune(model, small_data(), pet_plan(objective=QAT()))


@pytest.mark.parametrize("objective", [PET(PET_PATHS), SPEQ()], ids=["pet", "speq"])
def test_accumulation_takes_the_same_steps(objective):
    plan = pet_plan(epochs=1, objective=objective)
    one, four = (train(chain(), small_data(), replace(plan, accumulate=n)) for n in (1, 4))
    assert one.history[0].loss == pytest.approx(four.history[0].loss, rel=1e-5)
    for name, tensor in one.network.state_dict().items():
        torch.testing.assert_close(tensor, four.network.state_dict()[name], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, about torch's own ways
@pytest.mark.parametrize(
    ("network", "data", "plan"),
    [
        (chain, small_data, pet_plan(epochs=1, accumulate=2, objective=Trajectory((0, 1), settled=1))),
        (residual, residual_data, pet_plan(epochs=1, batch=8)),  # another shape in the same process
    ],
)
def test_a_compiled_network_takes_the_same_steps(network, data, plan):
    plain, compiled = (train(network(), data(), replace(plan, compile=c)) for c in (False, True))
    assert plain.history[0].loss == pytest.approx(compiled.history[0].loss, rel=1e-4)
    for name, tensor in plain.network.state_dict().items():
        torch.testing.assert_close(tensor, compiled.network.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_where_no_compiler_works_training_says_so(monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=_broken))
    with pytest.raises(RecipeError, match=r"torch\.compile failed .*Leave compile out"):
        train(chain(), small_data(), pet_plan(epochs=1, compile=True))


def test_a_compiler_that_loses_gradients_is_refused(monkeypatch):
    """As torch 2.11's does with some functions: the values are right, and nothing is learned."""

    def losing(module, dynamic):
        class Lost(nn.Module):
            def forward(self, images):
                values = module(images)
                return values.detach() + 0 * sum(p.sum() for n, p in module.named_parameters() if "weight" in n)

        return Lost()

    monkeypatch.setattr(torch, "compile", losing)
    with pytest.raises(RecipeError, match=r"loses the gradient of '.*': it would not be trained"):
        train(chain(), small_data(), pet_plan(epochs=1, objective=QAT(), compile=True))


def _broken(graph, example):
    raise OSError("no compiler here")


def test_first_step_against_torch_by_hand():
    """One SGD step of one batch, with its own rate and no decay for scales."""
    images, labels = clusters(32)
    network, by_hand = chain(), chain()
    plan = pet_plan(
        objective=QAT(), epochs=1, batch=32, optimizer=SGD(0.1, momentum=0.0, weight_decay=0.5, scale_rate=0.25)
    )
    plan = replace(plan, validation_split=None)
    trained = finetune(network, TensorBatches(images, labels), plan)
    nn.functional.cross_entropy(by_hand(images), labels).backward()
    rate = 0.1 * 0.5  # the middle of a cosine's single step
    for (name, parameter), after in zip(by_hand.named_parameters(), trained.parameters(), strict=True):
        assert parameter.grad is not None
        scale = name.endswith("scale")
        decay = 0.5 if parameter.dim() >= 2 else 0.0
        wanted = parameter - rate * (0.25 if scale else 1.0) * (parameter.grad + decay * parameter)
        torch.testing.assert_close(after, wanted, rtol=1e-5, atol=1e-7)


def test_scales_stay_positive_at_a_wild_rate():
    plan = pet_plan(epochs=1, optimizer=SGD(0.01, scale_rate=1e5))
    trained = finetune(chain(), small_data(), replace(plan, objective=QAT()))
    assert all(t > 0 for n, t in trained.state_dict().items() if n.endswith("scale"))


def test_ema_is_what_is_evaluated_and_returned():
    plan = pet_plan(epochs=2, objective=QAT(), ema=0.9)
    averaged, last = train(chain(), small_data(), plan), train(chain(), small_data(), replace(plan, ema=None))
    assert not same(averaged.network, last.network)
    images, labels = next(small_data().batches("val", 1000, shuffle=False))
    for done in (averaged, last):
        accuracy = (done.network(images).argmax(-1) == labels).float().mean()
        assert done.history[-1].validation["accuracy"] == pytest.approx(accuracy.item())


def test_events_and_history(tmp_path: Path):
    events = []
    done = train(chain(), small_data(), pet_plan(log_every=2), out=tmp_path / "run", on_event=events.append)
    steps = [e for e in events if isinstance(e, StepDone)]
    assert [(e.epoch, e.step, e.steps) for e in steps] == [(k, s, 5) for k in range(3) for s in (2, 4, 5)]
    assert [e for e in events if isinstance(e, EpochDone)] == list(done.history)
    assert [r["epoch"] for r in json.loads((tmp_path / "run" / "history.json").read_text())] == [1, 2, 3]
    assert done.history[0].images == 5 * 16
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "checkpoint.safetensors",
        "history.json",
        "network.safetensors",
    ]


def test_listeners(tmp_path: Path, capsys):
    with ProgressBar() as bar, TensorBoard(tmp_path / "tb") as board:
        train(chain(), small_data(), pet_plan(epochs=1), on_event=lambda e: [bar(e), board(e)][0])
    assert "epoch 1/1" in capsys.readouterr().err
    assert any(p.stat().st_size for p in (tmp_path / "tb").iterdir())


def test_a_log_gets_lines(capsys):
    train(chain(), small_data(), pet_plan(epochs=2, log_every=2))
    (told,) = capsys.readouterr().err.splitlines()  # the first took less than five seconds
    assert told.startswith("epoch 2/2  loss") and "accuracy" in told and "validation loss" in told
    train(chain(), small_data(), pet_plan(epochs=2, log_every=3), on_event=Lines(every=0, least=0))
    told = [line.split("  ")[0] for line in capsys.readouterr().err.splitlines()]
    assert told == ["epoch 1/2, step 3/5", "epoch 1/2", "epoch 2/2, step 3/5", "epoch 2/2"]


def test_a_line_never_claims_all(capsys):
    Lines(every=0, least=0)(EpochDone(1, 1, 5000, 0.1, {"accuracy": 0.9996}))
    assert "accuracy 99.96 %" in capsys.readouterr().err


def test_bfloat16_trains():
    done = train(chain(), small_data(), pet_plan(epochs=2, precision=Precision.BF16))
    assert done.network(torch.zeros(1, 6)).dtype == torch.float32
    assert done.history[-1].loss < done.history[0].loss


def test_fewer_images_an_epoch():
    done = train(chain(), small_data(), pet_plan(epochs=1, train_images=40, validation_images=16))
    assert done.history[0].images == 32


@pytest.mark.parametrize("cut", [{"batch": 16}, {"batch": 64}, {"batch": 16, "accumulate": 4}])
def test_exactly_as_many_images_are_validated_as_asked_for(cut: dict):
    plan = pet_plan(epochs=1, objective=QAT(), validation_images=21, **cut)
    done = train(chain(), small_data(), plan)
    images, labels = next(small_data().batches("val", 21, shuffle=False))
    accuracy = (done.network(images).argmax(-1) == labels).float().mean()
    assert done.history[0].validation["accuracy"] == pytest.approx(accuracy.item())


# -- errors -----------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_a_number_stops_with_advice(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"loss is nan at epoch 1, step \d.*Lower the learning rate"):
        finetune(chain(), small_data(), pet_plan(optimizer=SGD(1e30)), out=tmp_path / "run")
    assert not (tmp_path / "run" / "network.safetensors").exists()


@pytest.mark.parametrize("split", ["val", None])
def test_a_last_step_that_diverges_saves_nothing(split: str | None, tmp_path: Path):
    """The loss is of before the step; what the last step made of the weights is looked at too."""
    plan = pet_plan(batch=80, optimizer=SGD(1e30, weight_decay=1e10), validation_split=split)
    with pytest.raises(RecipeError, match=r"Weights or .* no longer finite at epoch 1, step 1: training has diverged"):
        train(chain(), small_data(), plan, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_statistics_that_diverge_stop():
    """With finite weights and a finite loss: the variance of a batch of 1e20s is beyond float32."""
    images, labels = clusters()
    network = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3))
    plan = pet_plan(objective=QAT(), epochs=1, batch=96, validation_split=None)
    with pytest.raises(RecipeError, match=r"statistics of BatchNorm are no longer finite"):
        train(network, TensorBatches(images * 1e20, labels), plan)


def test_a_validation_loss_that_is_not_a_number_stops(tmp_path: Path):
    data = small_data()
    data.images[data._indices("val")] = float("nan")
    with pytest.raises(RecipeError, match=r"validation loss is nan at epoch 1"):
        train(chain(), data, pet_plan(), out=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "value"), [("1.weight", math.inf), ("0.running_mean", math.nan)])
def test_a_network_that_is_not_finite_is_refused_by_name(name: str, value: float):
    network = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3))
    network.register_buffer("mask", torch.full((3,), -math.inf))  # as attention stores it
    train(network, small_data(), pet_plan(objective=QAT(), epochs=1))
    network.state_dict()[name].flatten()[0] = value
    with pytest.raises(StageError, match=rf"'{name}' has NaN or infinite values.*Load sound weights"):
        train(network, small_data(), pet_plan(objective=QAT(), epochs=1))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_images_that_are_not_finite_are_refused(value: float):
    images, labels = clusters(9)
    images[7, 2] = value
    with pytest.raises(DataError, match="images have NaN or infinite values"):
        TensorBatches(images, labels)


def test_a_misspelt_validation_split_is_told_before_training():
    with pytest.raises(UnknownNameError, match="no split of tensors 'vla'"):
        train(chain(), small_data(), pet_plan(validation_split="vla"), on_event=lambda event: pytest.fail(str(event)))


class Logging(QAT):
    """An objective that logs one number more."""

    def __init__(self, name: str):
        super().__init__()
        self.__dict__["name"] = name

    def loss(self, module: nn.Module, images: Tensor, labels: Tensor):
        loss, numbers = super().loss(module, images, labels)
        return loss, {**numbers, self.name: 3.5}


def test_what_an_objective_logs():
    record = train(chain(), small_data(), pet_plan(objective=Logging("mine"), epochs=1)).history[0]
    assert record.numbers["mine"] == record.validation["mine"] == 3.5
    for name in ("loss", "images"):
        with pytest.raises(RecipeError, match=f"logs '{name}', which training counts itself"):
            train(chain(), small_data(), pet_plan(objective=Logging(name), epochs=1))


class Counting(nn.Linear):
    def get_extra_state(self):
        return {"seen": 3}

    def set_extra_state(self, state):
        pass


def test_state_that_is_no_tensor_is_refused_by_name():
    network = nn.Sequential(nn.Linear(6, 4), Counting(4, 3))
    with pytest.raises(StageError, match=r"'1\._extra_state' is a dict.* Keep it in a buffer"):
        train(network, small_data(), pet_plan(objective=QAT()))
    teacher = pet_plan(objective=QAT(CrossEntropy(distil=Distil()), teacher=Counting(6, 3)), epochs=1)
    train(chain(), small_data(), teacher)


@pytest.mark.parametrize(
    "layers", [lambda: (nn.Flatten(), nn.Linear(16, 5)), lambda: (nn.Conv2d(1, 5, 4), nn.Flatten())]
)
@pytest.mark.parametrize(("weights", "images"), [(torch.float64, torch.float32), (torch.float32, torch.uint8)])
def test_images_of_another_type_than_weights(layers: Any, weights: torch.dtype, images: torch.dtype):
    data = residual_data()
    data = replace(data, images=data.images.abs().to(images))
    with pytest.raises(InputError, match=f"The images are {images}; this network takes {weights}"):
        train(nn.Sequential(*layers()).to(weights), data, pet_plan(objective=QAT()))


class Nothing:
    def count(self, split: str) -> int:
        return 0

    def batches(self, *args, **kwargs):
        return iter(())


def test_a_batch_of_several_tensors():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 3), nn.Linear(6, 3, bias=False)

        def forward(self, both: tuple[Tensor, Tensor]) -> Tensor:
            return self.first(both[0]) + self.second(both[1])

    class Twice(TensorBatches):
        def batches(self, *args, **kwargs):
            return (((images, images[:, :6]), labels) for images, labels in super().batches(*args, **kwargs))

    model, data = Pair(), Twice(*clusters(120), held_out=40)
    with torch.no_grad():  # as one may have it around a conversion
        done = train(model, data, pet_plan(objective=QAT(), validation_images=20))
    assert done.history[-1].loss < done.history[0].loss
    assert done.history[-1].validation["accuracy"] > 0.5


def test_what_is_no_data_no_plan_or_has_no_gradients():
    images, labels = clusters(16)
    dataset = torch.utils.data.TensorDataset(images, labels)
    for data in (dataset, torch.utils.data.DataLoader(dataset, 8), (images, labels)):
        with pytest.raises(
            InputError, match=rf"The data is a {type(data).__name__}, .*TensorBatches\(images, labels\)"
        ):
            finetune(chain(), data, pet_plan())  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"The plan is a QAT; give a Plan, for example Plan\(QAT\(\)"):
        finetune(chain(), small_data(), QAT())  # type: ignore[arg-type]
    with torch.inference_mode(), pytest.raises(StageError, match=r"torch\.inference_mode\(\) makes no gradients"):
        finetune(chain(), small_data(), pet_plan())


def test_fewer_images_than_a_batch_are_all_used_or_refused():
    data = TensorBatches(*clusters(30))
    plan = pet_plan(objective=QAT(), batch=128, validation_split=None, epochs=1)
    assert train(chain(), data, replace(plan, accumulate=2)).history[0].images == 30
    with pytest.raises(RecipeError, match=r"30 images of 'train', fewer than batch=128, .*4 equal parts. Use batch=28"):
        train(chain(), data, replace(plan, accumulate=4))


def test_data_errors():
    with pytest.raises(DataError, match="nothing to train on"):
        finetune(chain(), Nothing(), pet_plan())
    with pytest.raises(DataError, match="3 images and 2 labels"):
        TensorBatches(torch.zeros(3, 6), torch.zeros(2))
    with pytest.raises(DataError, match="Hold out fewer"):
        TensorBatches(torch.zeros(3, 6), torch.zeros(3), held_out=3)
    for labels, said in (
        (torch.zeros(3), r"labels are torch\.float32 of shape \(3,\)"),
        (torch.zeros(3, 1).long(), r"3 images need 3 whole numbers"),
        ([0, 1, 2], "labels are a list"),
    ):
        with pytest.raises(InputError, match=said):
            TensorBatches(torch.zeros(3, 6), labels)
    with pytest.raises(InputError, match="images are a list"):
        TensorBatches([0.0, 1.0], torch.zeros(2).long())  # type: ignore[arg-type]
    with pytest.raises(DataError, match="There is a label -100; classes are counted from 0"):
        TensorBatches(torch.zeros(3, 6), torch.tensor([0, -100, 1]))
    assert TensorBatches(torch.zeros(3, 6), torch.zeros(3, dtype=torch.uint8)).labels.dtype == torch.int64


def test_labels_beyond_the_network_s_outputs():
    for objective in (QAT(), PET(PET_PATHS)):
        with pytest.raises(StageError, match=r"has the label 2, and the network 2 outputs, for labels 0 to 1"):
            finetune(chain(classes=2), small_data(), pet_plan(objective=objective))


def test_labels_below_0_and_a_teacher_of_other_classes():
    logits = torch.zeros(2, 3)
    with pytest.raises(StageError, match="has the label -1, and the network 3 outputs"):
        QAT().loss(lambda images: logits, logits, torch.tensor([-1, 2]))  # type: ignore[arg-type]
    taught = QAT(CrossEntropy(distil=Distil()), teacher=nn.Linear(6, 7))
    with pytest.raises(StageError, match=r"The teacher gave \(16, 7\) where the network gives \(16, 3\)"):
        finetune(chain(), small_data(), pet_plan(objective=taught))


def test_a_batch_normalisation_without_a_batch():
    network = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    for batch in (1, 4):
        with pytest.raises(RecipeError, match=rf"statistics of 1 image.*batch={batch} .*Use a greater batch"):
            finetune(network, small_data(), pet_plan(objective=QAT(), batch=batch, accumulate=batch))


def test_a_network_of_two_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.head(x * mask)

    with pytest.raises(StageError, match=r"this Two has forward\(x: .*mask: .*one input"):
        finetune(Two(), small_data(), pet_plan(objective=QAT()))


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine that trains on its CPU")
def test_half_precision_is_refused_on_a_cpu():
    with pytest.raises(RecipeError, match="fp16 cannot be used on a CPU"):
        finetune(chain(), small_data(), pet_plan(precision=Precision.FP16))


def test_network_errors():
    with pytest.raises(StageError, match=r"no weight to train.*captured.*requires_grad_\(True\)"):
        finetune(chain().requires_grad_(False), small_data(), pet_plan())
    with pytest.raises(StageError, match=r"The weight 'weight' is uninitialized: .*Call it once on a batch"):
        finetune(nn.LazyLinear(3), small_data(), pet_plan(objective=QAT()))
    ann = capture(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), small_data().images[:1])
    qann = quantize(morph(ann), 8, small_data().images)
    with pytest.raises(StageError, match=r"Integer weights are not trained.*to_integer\(\) after"):
        finetune(to_integer(qann), small_data(), pet_plan())
    for network in (spike(qann), spike(qann).graph):
        with pytest.raises(StageError, match=r"Only an ANN or a QANN is trained.*before spike\(\)"):
            finetune(network, small_data(), pet_plan())  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"The images are torch\.float64; this network takes torch\.float32"):
        finetune(qann, TensorBatches(clusters(48)[0].double(), clusters(48)[1]), pet_plan())
    uncalibrated = chain()
    uncalibrated.get_submodule("1").calibrated.fill_(False)  # type: ignore[union-attr]
    with pytest.raises(StageError, match="'1' is not calibrated"):
        finetune(uncalibrated, small_data(), pet_plan())
    with pytest.raises(StageError, match=r"one output of logits .* \(16, 4, 3\)"):
        finetune(chain(), TensorBatches(torch.zeros(16, 4, 6), torch.zeros(16).long()), pet_plan(objective=QAT()))
    with pytest.raises(RecipeError, match="no teacher was given"):
        finetune(chain(), small_data(), pet_plan(objective=QAT(CrossEntropy(distil=Distil()))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs=0: give 1 or more"),
        ({"train_split": "trainval"}, "share images"),
        ({"train_split": "val", "validation_split": "trainval"}, "share images"),
        ({"batch": 10, "accumulate": 4}, "Use batch=12"),
        ({"epochs": 3, "cooldown": Cooldown(after=3)}, "no more than epochs=3"),
        ({"ema": 1.0}, "between 0 and 1"),
        ({"clip": 0.0}, "above 0"),
        ({"warmup": 9.0}, "warmup <= epochs"),
        ({"optimizer": AdamW(rate=0.0)}, "above 0"),
        ({"epochs": 1.5}, r"epochs=1\.5: give 1 or more, a whole number"),
        ({"epochs": 10**400}, r"epochs=10+: give 1 or more, a whole number up to 1000000000"),
        ({"warmup": 10**400}, r"warmup=10+: give a finite number"),
        ({"batch": "64"}, "batch='64': give 1 or more"),
        ({"seed": -1}, "seed=-1: give a whole number, 0 or more"),
        ({"precision": "bf16"}, r"precision='bf16': give Precision\.NO"),
        ({"clip": math.nan}, "clip=nan: give a finite number"),
        ({"optimizer": SGD(math.nan)}, "rate=nan: give a finite number"),
        ({"optimizer": torch.optim.SGD}, r"give SGD\(0\.01\) or AdamW"),
        ({"cooldown": Cooldown(1, 0.5)}, "both are whole numbers"),  # type: ignore[arg-type]
        ({"objective": PET}, r"give a value such as QAT\(\)"),
        ({"epochs": None}, "epochs=None: give 1 or more"),
        ({"batch": None}, "batch=None: give 1 or more"),
        ({"accumulate": None}, "accumulate=None: give 1 or more"),
        ({"log_every": None}, "log_every=None: give 1 or more"),
        ({"warmup": None}, "warmup=None: give a finite number"),
        ({"final_rate": None}, "final_rate=None: give a finite number"),
        ({"train_split": None}, "train_split=None: give the name of a split"),
        ({"validation_split": 3}, "validation_split=3: give the name of a split"),
        ({"optimizer": SGD(rate=None)}, "rate=None: give a finite number"),  # type: ignore[arg-type]
        ({"optimizer": SGD(scale_rate=None)}, "scale_rate=None: give a finite number"),  # type: ignore[arg-type]
        ({"augment": "no"}, "augment='no': give True or False"),
        ({"compile": "yes"}, "compile='yes': give True or False"),
    ],
)
def test_plans_out_of_range(change: dict, message: str):
    with pytest.raises(RecipeError, match=message):
        pet_plan(**change)


def test_shares_and_paths_out_of_range():
    for momentum in (-0.1, 1.5, "0.9"):
        with pytest.raises(RecipeError, match="give a share from 0 to below 1"):
            SGD(momentum=momentum)
    for betas in ((1.0, 0.9), (0.9,), 0.9):
        with pytest.raises(RecipeError, match="give two shares from 0 to below 1"):
            AdamW(betas=betas)
    for paths in (Capped(2), ("capped2",), (Capped,), None):
        with pytest.raises(RecipeError, match=r"give a tuple of paths, such as \(Capped"):
            PET(paths)


def test_nesterov_needs_momentum():
    with pytest.raises(RecipeError, match="nesterov looks ahead along the momentum"):
        SGD(momentum=0.0, nesterov=True)


def test_losses_out_of_range():
    for make in (lambda: PETLoss(alpha=-1), lambda: CrossEntropy(smoothing=1.0), lambda: MainLabels(0.0)):
        with pytest.raises(RecipeError):
            make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Trajectory(0.5), r"weights=0\.5: give the loss's weight at each step"),
        (lambda: Trajectory(("a",)), r"weights=\('a',\): give the loss's weight at each step"),
        (lambda: Trajectory((1,), settled=None), "settled=None: a loss's weight is a number"),
        (lambda: Trajectory((1,), learn_bias_shares="no"), "learn_bias_shares='no': give True or False"),
        (lambda: Penalty("1"), "spikes='1'.* a penalty's weight is a number"),
        (lambda: Distil(temperature="x"), "temperature='x': give a number above 0"),
        (lambda: Distil(mixed="no"), "mixed='no': give True or False"),
        (lambda: CrossEntropy(smoothing="0"), "smoothing='0': label smoothing"),
        (lambda: CrossEntropy(distil=1.0), r"distil=1\.0: give Distil\(\)"),
        (lambda: PETLoss(alpha="1"), "alpha='1': a loss's weight is a number"),
        (lambda: PETLoss(sub_labels="hard"), r"sub_labels='hard': give HardLabels\(\)"),
        (lambda: SPEQ(weight="1"), "weight='1': give a number above 0"),
        (lambda: SPEQ(finer=4), "finer=4: give how many times finer"),
        (lambda: SPEQ(finer=(10**30,)), "whole numbers from 1 to 16777216"),
        (lambda: SPEQ(soft="kl"), r"soft='kl': give CosineLabels\(\)"),
        (lambda: QAT(PETLoss()), r"criterion=PETLoss.*: give CrossEntropy\(\)"),
        (lambda: PET(PET_PATHS, CrossEntropy()), r"criterion=CrossEntropy.*: give PETLoss\(\)"),
        (lambda: QAT(teacher="ann"), "teacher='ann': give a network"),
        (lambda: SGD(nesterov="no"), "nesterov='no': give True or False"),
    ],
)
def test_choices_of_another_type(make: Any, message: str):
    with pytest.raises(RecipeError, match=message):
        make()


def test_soft_labels_hold_their_target_fixed():
    """With labels from the main path no gradient of the sub-paths' part reaches the main logits."""
    logits = torch.randn(3, 4, 5, requires_grad=True)
    labels = torch.arange(4)
    only_main, _ = PETLoss(alpha=0.0)(logits, labels, ["main", "a", "b"])
    both, _ = PETLoss(alpha=1.0, sub_labels=MainLabels(2.0))(logits, labels, ["main", "a", "b"])
    (first,), (second,) = torch.autograd.grad(only_main, logits), torch.autograd.grad(both, logits)
    assert torch.equal(first[0], second[0])
    # d T^2 KL / d z = T (softmax(z/T) - softmax(z_0/T)) / B
    wanted = 2.0 * ((logits[1:] / 2).softmax(-1) - (logits[:1] / 2).softmax(-1)) / 4
    torch.testing.assert_close(second[1:], wanted.detach())


def test_pet_loss_adds_up():
    logits, labels = torch.randn(3, 4, 5), torch.arange(4)

    def cross_entropy(z: Tensor) -> Tensor:
        return -z.log_softmax(-1)[torch.arange(4), labels].mean()

    loss, numbers = PETLoss(alpha=0.3, beta=0.7, sub_labels=HardLabels())(logits, labels, ["main", "a", "b"])
    wanted = cross_entropy(logits[0]) + 0.3 * (cross_entropy(logits[1]) + cross_entropy(logits[2]))
    torch.testing.assert_close(loss, wanted + 0.7 * cross_entropy(logits.mean(0)))
    assert numbers.keys() == {
        "accuracy", "loss/a", "accuracy/a", "loss/b", "accuracy/b", "loss/ensemble", "accuracy/ensemble",
    }  # fmt: skip


def test_levels_stay_what_they_were():
    trained = finetune(chain(Levels(0, 3)), small_data(), pet_plan(epochs=1))
    assert trained.get_submodule("1").levels == Levels(0, 3)


def test_a_module_that_insists_on_views_is_trained():
    """A user's own network, not captured: where it takes images in one layout alone, it is given that."""

    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(64, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).view(x.size(0), -1))

    done = train(Viewing(), residual_data(), pet_plan(objective=QAT(), epochs=1))
    assert done.history[-1].loss > 0


def test_a_module_that_takes_any_layout_is_trained_channels_last():
    """As on captured graphs, in which convolutions are faster; the result has the usual layout again."""
    seen = []

    class Reshaping(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.conv = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.head = nn.Linear(64, 5)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.conv(self.first(x))
            seen.append(hidden.is_contiguous(memory_format=torch.channels_last))
            return self.head(hidden.flatten(1))

    done = train(Reshaping(), residual_data(), pet_plan(objective=QAT(), epochs=1))
    assert all(seen)
    assert done.network.get_parameter("conv.weight").is_contiguous()


def test_a_soup_is_the_mean_of_networks():
    plan = pet_plan(epochs=1, objective=QAT())
    one, two = (finetune(chain(), small_data(), replace(plan, seed=seed)) for seed in (0, 1))
    mixed = soup([one, two])
    assert same(soup([one]), one) and not same(one, two)
    for name, tensor in mixed.state_dict().items():
        pair = [network.state_dict()[name] for network in (one, two)]
        expected = pair[0] if not tensor.is_floating_point() else (pair[0] + pair[1]) / 2
        torch.testing.assert_close(tensor, expected)
    assert not same(mixed, one)
    with pytest.raises(StageError, match=r"'0\.weight' differs"):
        soup([one, chain(inputs=9)])
    with pytest.raises(StageError, match=r"'more\.weight' differs"):
        soup([one, nn.Sequential(OrderedDict([*one.named_children(), ("more", nn.Linear(3, 3))]))])
    with pytest.raises(StageError, match=r"takes a list of networks; this is one GraphModule"):
        soup(one)  # type: ignore[arg-type]
    with pytest.raises(StageError, match="one network or more"):
        soup([])


class TokensFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.inner(x.transpose(0, 1))).mean(0))


def test_accumulation_takes_the_same_steps_where_images_are_no_first_dimension(tmp_path: Path):
    torch.manual_seed(0)
    images, labels = torch.rand(16, 5, 4), torch.arange(16) % 3
    qann = quantize(morph(capture(TokensFirst(), images[:2])), 4, images)
    again = load_bundle(save_bundle(qann, tmp_path / "qann.spikezip"))
    settled = spike(qann).qann.requires_grad_(True)
    found = []
    for network in (qann, again, settled):
        for n in (1, 8):
            plan = Plan(QAT(), batch=16, accumulate=n, optimizer=SGD(0.5, scale_rate=1.0), validation_split=None)
            done = train(network, TensorBatches(images, labels), plan).network
            found += [float(m.scale.detach()) for m in done.modules() if isinstance(m, Quantizer)]
    assert found == pytest.approx([found[0]] * 6, rel=1e-6)


def test_a_soup_of_live_networks_does_not_ask_how_long_each_was_trained():
    images, _ = clusters(48)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    start = quantize(morph(capture(model, images[:2]), Morph(batch_norm=BatchNorm.LIVE)), 8, images)
    one = fork(start).train()
    one(images)
    mixed = soup([one.eval(), start])
    (norm,) = (m for m in mixed.modules() if isinstance(m, nn.BatchNorm1d))
    torch.testing.assert_close(norm.running_mean, 0.5 * one.get_buffer("1.running_mean"))
    assert norm.num_batches_tracked == 1


def test_a_soup_is_of_one_network():
    torch.manual_seed(0)
    images, _ = clusters(48)
    ann = morph(capture(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), images[:1]))
    start = quantize(ann, 8, images)

    def trained(**notes: Any) -> fx.GraphModule:
        network = fork(start)
        remark(network, **notes)
        return network

    one, two = trained(bias_shares="shares:74/113/256"), trained(bias_shares="shares:90/101/256")
    assert spike(soup([one, two])).bias_encoding == Shares((82, 107, 256))
    assert spike(soup([one, one])).bias_encoding == Shares((74, 113, 256))
    assert spike(soup([trained(initial_code=0, bias_shares=None), start])).bias_encoding == Pulse()
    for others, said in (
        ([one, start], "bias shares were learned for other steps, or not"),
        ([one, trained(bias_shares="shares:100/256")], "bias shares were learned for other steps, or not"),
        ([start, trained(initial_code=1)], "differ in initial_code"),
        ([start, quantize(ann, 4, images)], "differ in levels"),
        ([to_integer(start)], r"call soup\(\) before to_integer\(\)"),
    ):
        with pytest.raises(StageError, match=said):
            soup(others)
