"""SPEQ: the teacher is the network itself at random precisions, and no gradient reaches its pass."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from training_nets import chain, clusters, residual, resumable_plan, same, small_data

from spikezip import Levels, Morph, capture, morph, quantize
from spikezip.errors import RecipeError, StageError
from spikezip.quantize.quantizer import Quantizer
from spikezip.train import (
    SPEQ,
    AdamW,
    CosineLabels,
    Plan,
    RandomQuantizer,
    Saved,
    TeacherLabels,
    TensorBatches,
    finetune,
    random_precision,
    train,
)
from spikezip.train.recipe import check_recipe


def staircase(drive: Tensor, scale: float, highest: int) -> Tensor:
    """Value by value, in Python's own arithmetic."""
    codes = [min(max(math.floor(u / scale + 0.5), 0), highest) for u in drive.flatten().tolist()]
    return torch.tensor(codes, dtype=drive.dtype).reshape(drive.shape) * scale


def by_hand(net: fx.GraphModule, x: Tensor, finer: list[int]) -> Tensor:
    """The two-layer chain of training_nets, 0..7 at scale 0.2, with these precisions."""
    first, second, head = (m for m in net.modules() if isinstance(m, nn.Linear))
    scales = [float(m.scale.detach()) for m in net.modules() if isinstance(m, Quantizer)]
    x = staircase(first(x), scales[0] / finer[0], 7 * finer[0])
    x = staircase(second(x), scales[1] / finer[1], 7 * finer[1])
    return head(x)


def test_the_teacher_is_the_network_at_the_precisions_drawn():
    net, (x, _) = chain().double(), clusters()
    teacher, x = random_precision(net, (1, 2, 4)), x.double()
    seen = set()
    for seed in range(24):
        torch.manual_seed(seed)
        drawn = [(1, 2, 4)[int(torch.randint(3, ()))] for _ in range(2)]
        torch.manual_seed(seed)
        with torch.no_grad():
            torch.testing.assert_close(teacher(x), by_hand(net, x, drawn), rtol=1e-12, atol=1e-12)
        seen.add(tuple(drawn))
    assert len(seen) > 5, "layers are to draw each for itself"
    assert {id(p) for p in teacher.parameters()} == {id(p) for p in net.parameters()}


def test_signed_levels_keep_their_range():
    fine = RandomQuantizer(nn.Parameter(torch.tensor(0.5)), Levels(-4, 3), (2,))
    drive = torch.tensor([-9.0, -1.6, -0.1, 0.124, 0.126, 9.0])
    assert fine(drive).tolist() == [-2.0, -1.5, 0.0, 0.0, 0.25, 1.5]


def test_a_half_precise_drive_is_read_at_the_finer_precision():
    fine = RandomQuantizer(nn.Parameter(torch.tensor(0.3)), Levels(0, 63), (4,))
    drive = (torch.rand(999, generator=torch.Generator().manual_seed(0)) * 20).bfloat16()
    assert torch.equal(fine(drive), fine(drive.float()).bfloat16())


@pytest.mark.parametrize("soft", [CosineLabels(2.0), TeacherLabels(2.0)], ids=str)
def test_loss_and_gradients_are_those_of_the_student_with_fixed_soft_labels(soft):
    net, (x, labels) = chain(), clusters()
    objective = SPEQ((2, 4), weight=3.0, soft=soft, smoothing=0.1)
    module = objective.module(net)
    torch.manual_seed(5)
    loss, numbers = objective.loss(module, x, labels)
    given = torch.autograd.grad(loss, list(net.parameters()))
    torch.manual_seed(5)
    drawn = [(2, 4)[int(torch.randint(2, ()))] for _ in range(2)]
    with torch.no_grad():
        target = by_hand(net, x, drawn)
    logits = net(x)
    p, q = (logits / 2).softmax(-1), (target / 2).softmax(-1)
    if isinstance(soft, CosineLabels):
        apart = (1 - (p * q).sum(-1) / (p.norm(dim=-1) * q.norm(dim=-1))).mean()
    else:
        apart = 4 * (q * (q.log() - p.log())).sum(-1).mean()
    wanted = F.cross_entropy(logits, labels, label_smoothing=0.1) + 3 * apart
    assert float(apart.detach()) > 1e-5, "the teacher is to differ from the student"
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(numbers["soft"], apart.detach())
    # The teacher's pass uses the same parameters: a gradient through it would be seen in the sum.
    for a, b in zip(given, torch.autograd.grad(wanted, list(net.parameters())), strict=True):
        torch.testing.assert_close(a, b)


def test_validation_has_no_teacher_and_draws_nothing():
    net, (x, labels) = chain(), clusters()
    objective = SPEQ()
    module = objective.module(net).eval()
    state = torch.random.get_rng_state()
    loss, numbers = objective.loss(module, x, labels)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.testing.assert_close(loss, F.cross_entropy(net(x), labels))
    assert set(numbers) == {"accuracy"}


def test_it_trains_a_captured_network():
    torch.manual_seed(3)
    x = torch.randn(512, 6)
    data = TensorBatches(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long(), held_out=128)
    ann = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    qann = quantize(morph(capture(ann.eval(), x[:2]), Morph()), Levels(0, 3), x)
    before = [p.detach().clone() for p in qann.parameters()]
    done = train(qann, data, Plan(SPEQ(), epochs=20, batch=64, optimizer=AdamW(rate=0.01)))
    assert done.history[-1].validation["loss"] < done.history[0].validation["loss"]
    assert done.history[-1].validation["accuracy"] > 0.75
    assert "accuracy/teacher" in done.history[-1].numbers
    assert all(torch.equal(a, b) for a, b in zip(before, qann.parameters(), strict=True)), "the QANN given is untouched"


def test_killed_and_resumed_it_gives_the_same_bits(tmp_path):
    plan = replace(resumable_plan(), objective=SPEQ())
    whole = finetune(chain(), small_data(), plan)

    class KilledError(Exception):
        pass

    saved = []

    def kill(event):
        saved.extend([event] if isinstance(event, Saved) else [])
        if len(saved) == 3:
            raise KilledError

    with pytest.raises(KilledError):
        finetune(chain(), small_data(), plan, out=tmp_path, on_event=kill)
    assert same(finetune(chain(), small_data(), plan, out=tmp_path, resume=True), whole)


def test_what_is_refused():
    for finer in ((), (0, 2), (2.5,), (True, 2)):
        with pytest.raises(RecipeError, match="how many times finer"):
            SPEQ(finer)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="always be the student"):
        SPEQ((1, 1))
    with pytest.raises(RecipeError, match="this is QAT"):
        SPEQ(weight=0)
    with pytest.raises(RecipeError, match="temperature=0"):
        CosineLabels(0)
    with pytest.raises(StageError, match="Call quantize"):
        finetune(nn.Linear(2, 2), TensorBatches(torch.zeros(4, 2), torch.zeros(4).long()), Plan(SPEQ()))
    assert SPEQ().module(residual())(torch.randn(2, 1, 4, 4))[1].shape == (2, 5)


LEAST = {"name": "mine", "stage": "speq", "model": "spikezip:digits", "data": "digits"}


def test_a_recipe_says_all_of_it():
    part = {"finer": [2, 16], "weight": 0.5, "divergence": "kl", "temperature": 3}
    recipe = check_recipe({**LEAST, "encoding": "even:4", "speq": part, "loss": {"smoothing": 0.1}})
    assert not recipe.needs_teacher
    found = recipe.plan().objective
    assert isinstance(found, SPEQ)
    assert (found.finer, found.weight, found.soft, found.smoothing) == ((2, 16), 0.5, TeacherLabels(3), 0.1)
    default = check_recipe(LEAST).plan().objective
    assert isinstance(default, SPEQ)
    assert (default.finer, default.weight, default.soft) == ((1, 2, 4, 8), 1.0, CosineLabels(1.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speq": {"finer": [1]}}, r"speq: give a precision finer than 1"),
        ({"speq": {"finer": []}}, r"speq\.finer: tuple should have at least 1 item"),
        ({"speq": {"finer": [0, 2]}}, r"speq\.finer\[0\]: input should be greater than or equal to 1"),
        ({"speq": {"fine": [2]}}, r"speq\.fine: there is no such key; did you mean finer\?"),
        ({"speq": {"weight": 0}}, r"speq\.weight: input should be greater than 0"),
        ({"speq": {"divergence": "l2"}}, r"speq\.divergence: input should be 'cosine' or 'kl'"),
        ({"loss": {"distil": {}}}, r"no use for loss\.distil"),
        ({"loss": {"alpha": 1}}, r"no use for loss\.alpha"),
        ({"paths": [{"capped": 1}]}, r"stage speq has no use for paths"),
        ({"stage": "qat", "speq": {}}, r"stage qat has no use for speq"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(change: dict, message: str):
    with pytest.raises(RecipeError, match=message):
        check_recipe({**LEAST, **change})
