"""Distillation of features: neurons beside the ANN's activations in the same places."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spikezip.errors import RecipeError, StageError
from spikezip.graph import capture
from spikezip.levels import Levels
from spikezip.morph import morph
from spikezip.quantize import Quantizer, quantize
from spikezip.run import Engine, execute
from spikezip.spike import Even, spike
from spikezip.train import (
    PET,
    QAT,
    SGD,
    AdamW,
    CrossEntropy,
    Distil,
    InTurn,
    PETLoss,
    Plan,
    Rescaled,
    TensorBatches,
    Trajectory,
    train,
)
from spikezip.train.features import distance
from spikezip.train.recipe import check_recipe

CLASSES = 4


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x):
        x = torch.relu(self.conv1(x))
        return self.head(torch.relu(self.conv2(x) + x).flatten(1))


@pytest.fixture
def nets():
    """The morphed ANN, its QANN, images and labels."""
    torch.manual_seed(0)
    images = torch.randn(16, 1, 4, 4)
    ann = morph(capture(Net().eval(), images[:1]))
    return ann, quantize(ann, Levels(0, 3), images), images, torch.arange(16) % CLASSES


@torch.no_grad()
def activations(network, images):
    """What ReLUs, quantizers or trackers of a graph give, layer after layer."""
    found = []

    class Watch(torch.fx.Interpreter):
        def run_node(self, n):
            value = super().run_node(n)
            if n.op == "call_module" or "relu" in n.name:
                found.append(value)
            return value

    Watch(network).run(images)
    return found


def by_hand(held, wanted):
    parts = [(((h - w) ** 2).flatten(1).sum(1), (w**2).flatten(1).sum(1)) for h, w in zip(held, wanted, strict=True)]
    return sum(float((away / size).mean()) for away, size in parts) / len(parts)


def criterion(features: float) -> CrossEntropy:
    return CrossEntropy(distil=Distil(0.0, features=features))


def test_qat_adds_the_relative_distance_of_every_layer(nets):
    ann, qann, images, labels = nets
    losses = {}
    for weight in (0.0, 3.0):
        objective = QAT(criterion(weight), teacher=ann)
        losses[weight], numbers = objective.loss(objective.module(qann), images, labels)
    wanted = by_hand(activations(qann, images), activations(ann, images))
    assert 0.001 < wanted < 0.5
    assert float(numbers["features"]) == pytest.approx(wanted, rel=1e-5)
    assert float((losses[3.0] - losses[0.0]).detach()) == pytest.approx(3 * wanted, rel=1e-4)


class Anywhere(nn.Module):
    """Images in the second dimension, merged with others and alone, as the slower index and as the faster."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(18, CLASSES)

    def forward(self, x):
        tokens = torch.relu(self.one(x.transpose(0, 1)))
        slower = torch.relu(self.two(tokens.transpose(0, 1).reshape(-1, 6)))
        return self.head(torch.relu(self.two(slower.reshape(-1, 3, 6).transpose(0, 1).reshape(-1, 6)))
                         .reshape(3, -1, 6).transpose(0, 1).flatten(1))  # fmt: skip


@pytest.mark.parametrize("model", [Net(), Anywhere()], ids=["images first", "anywhere"])
def test_features_do_not_depend_on_how_a_batch_is_cut(model):
    torch.manual_seed(0)
    images = torch.randn(8, *((1, 4, 4) if isinstance(model, Net) else (3, 4)))
    images[3] = 0
    ann = morph(capture(model, images[:2]))
    objective = QAT(criterion(1.0), teacher=ann)
    module, labels = objective.module(quantize(ann, Levels(0, 3), images)), torch.arange(8) % CLASSES
    whole = float(objective.loss(module, images, labels)[1]["features"])
    parts = [float(objective.loss(module, images[i : i + 2], labels[i : i + 2])[1]["features"]) for i in (0, 2, 4, 6)]
    assert whole == pytest.approx(sum(parts) / 4, rel=1e-5)


def test_a_sample_of_which_nothing_is_wanted_says_nothing():
    found, wanted = torch.ones(2, 3, requires_grad=True), torch.tensor([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]])
    apart = distance((found,), (wanted,))
    assert float(apart.detach()) == 0.125
    apart.backward()
    assert found.grad.tolist() == [[0.0] * 3, [pytest.approx(-1 / 12)] * 3]


def test_pet_compares_the_main_path(nets):
    ann, qann, images, labels = nets
    objective = PET((Rescaled(1), Rescaled(2)), PETLoss(distil=Distil(features=1.0)), teacher=ann)
    _, numbers = objective.loss(objective.module(qann), images, labels)
    assert float(numbers["features"]) == pytest.approx(
        by_hand(activations(qann, images), activations(ann, images)), rel=1e-5
    )


@pytest.mark.parametrize(("weights", "settled", "step"), [((0, 1), 0.0, 2), ((1, 0), 0.0, 1), ((0, 0), 1.0, None)])
def test_a_trajectory_compares_the_last_step_that_has_a_weight(nets, weights, settled, step):
    ann, qann, images, labels = nets
    objective = Trajectory(weights, Even(2), settled, criterion(1.0), teacher=ann)
    _, numbers = objective.loss(objective.module(qann), images, labels)
    run = execute(spike(qann, Even(2)), images, step, engine=Engine.REFERENCE)
    tracers = run.state.tracers
    held = [tracers[name] * neuron.threshold for name, neuron in spike(qann).layers]
    assert float(numbers["features"]) == pytest.approx(by_hand(held, activations(ann, images)), rel=1e-5)


def test_training_on_features_alone_brings_neurons_nearer_to_the_ann(nets):
    ann, qann, images, labels = nets
    with torch.no_grad():
        for quantizer in (m for m in qann.modules() if isinstance(m, Quantizer)):
            quantizer.scale.mul_(3)  # far too coarse
    objective = Trajectory((0, 1), Even(2), 0.0, criterion(100.0), teacher=ann)
    plan = Plan(objective, epochs=60, batch=16, optimizer=AdamW(0.03), validation_split=None)
    done = train(qann, TensorBatches(images, labels), plan)
    first, last = (done.history[i].numbers["features"] for i in (0, -1))
    assert last < first / 2


def test_the_teacher_is_the_ann_that_was_quantized(nets):
    ann, qann, images, labels = nets
    for teacher in (Net(), morph(capture(nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), images[:1]))):
        with pytest.raises(StageError, match=r"has no counterpart in the teacher.*pass teacher=ann"):
            QAT(criterion(1.0), teacher=teacher).module(qann)
    with pytest.raises(RecipeError, match="no teacher was given"):
        QAT(criterion(1.0)).module(qann)
    with pytest.raises(StageError, match="Features are learned by a QANN's graph; this is a Net"):
        QAT(criterion(1.0), teacher=ann).module(Net())
    with pytest.raises(StageError, match=r"no quantizer is found.*paths in one batch"):
        PET((Rescaled(1),), PETLoss(distil=Distil(features=1.0)), InTurn(), teacher=ann).module(qann)
    with pytest.raises(RecipeError, match="features=-1: a loss's weight is a number, 0 or more"):
        Distil(features=-1)
    before = {n: t.clone() for n, t in ann.state_dict().items()}
    train(qann, TensorBatches(images, labels), Plan(QAT(criterion(1.0), ann), batch=8, optimizer=SGD(0.1)))
    assert all(torch.equal(t, before[n]) for n, t in ann.state_dict().items())


def test_recipes():
    lines = {"name": "n", "model": "spikezip:digits", "data": "digits", "loss": {"distil": {"features": 5}}}
    recipe = check_recipe({**lines, "stage": "trajectory", "steps": [0, 1]})
    assert recipe.needs_teacher and recipe.learns_features
    objective = recipe.plan(nn.Linear(1, 1)).objective
    assert isinstance(objective, Trajectory) and objective.criterion.distil == Distil(1.0, 1.0, 5.0)
    with pytest.raises(RecipeError, match=r"stage ann has no use for loss\.distil\.features"):
        check_recipe({**lines, "stage": "ann"})
    with pytest.raises(RecipeError, match=r"loss\.distil\.features compares paths that share a batch"):
        check_recipe({**lines, "stage": "pet", "execution": "in-turn"})
