"""Capture: the same graph however a model is written, the model left alone, and what cannot be converted refused."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from random_networks import Drawn, shuffle_statistics
from spikezip.errors import CaptureError, InputError, StageError
from spikezip.graph import Stage, capture, info, network, origin
from spikezip.morph import morph


class Model(nn.Module):
    """``forward`` is the given function of the module and its input."""

    def __init__(self, function: Callable[[Model, Tensor], Tensor], **parts: nn.Module | Tensor):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def operations(gm) -> list[str]:
    return [network.op_name(n) for n in gm.graph.nodes if n.op == "call_function"]


# -- what is captured -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.act(m.conv(x)),
        lambda m, x: F.relu(m.conv(x)),
        lambda m, x: m.conv(x).relu_(),
        lambda m, x: torch.relu(m.conv(x)),
        lambda m, x: F.dropout(m.conv(x), 0.5, m.training).relu().detach().contiguous()[:],
    ],
    ids=["nn.ReLU", "F.relu", "relu_", "torch.relu", "with operations that do nothing"],
)
def test_spelling_does_not_matter(function):
    gm = capture(Model(function, conv=nn.Conv2d(2, 3, 3), act=nn.ReLU(inplace=True)), torch.zeros(1, 2, 5, 5))
    assert operations(gm) == ["conv2d", "relu"]


def test_outputs_and_names_are_the_models():
    model = shuffle_statistics(Drawn(["residual", "attention"], outputs=2)).eval()
    ann = capture(model, torch.zeros(1, 2, 5, 5))
    assert info(ann).stage is Stage.ANN
    assert set(dict(ann.named_parameters())) <= set(dict(model.named_parameters()))
    convolutions = [origin(n) for n in ann.graph.nodes if n.op == "call_function" and network.op_name(n) == "conv2d"]
    assert convolutions == ["stem", "blocks.0.conv1", "blocks.0.conv2"]
    for batch in (1, 2, 5):
        images = torch.randn(batch, 2, 5, 5)
        for found, wanted in zip(ann(images), model(images), strict=True):
            torch.testing.assert_close(found, wanted)


def test_the_users_model_is_untouched_bit_for_bit():
    model = shuffle_statistics(Drawn(["chain", "residual with convolution"])).train()
    model.blocks[0].bn.eval()  # frozen by its author
    model.stem.weight.requires_grad_(False)
    before = copy.deepcopy(model)
    ann = morph(capture(model, torch.randn(4, 2, 5, 5)))
    for tensor in ann.parameters():
        tensor.data.fill_(0.5)
    for (name, now), (_, was) in zip(model.state_dict().items(), before.state_dict().items(), strict=True):
        assert torch.equal(now, was), name
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in before.parameters()]
    assert all(p.grad is None for p in model.parameters())


def test_shared_weights_stay_shared():
    model = Model(lambda m, x: m.b(m.a(x)), a=nn.Linear(3, 3), b=nn.Linear(3, 3))
    model.b.weight = model.a.weight
    ann = capture(model, torch.zeros(1, 3))
    assert len({id(p) for p in ann.parameters()}) == 3


def test_a_stored_mask_of_minus_infinity_is_no_broken_weight():
    mask = nn.Buffer(torch.full((4, 4), -torch.inf).triu(1))
    model = Model(lambda m, x: F.softmax(x + m.mask, -1), mask=mask)
    images = torch.randn(2, 4, 4)
    assert torch.equal(capture(model, images)(images), model(images))


def test_where_the_batch_lies():
    """Behind ``view(tokens * batch)`` the batch is the inner index; behind ``view(batch * windows)`` the outer."""
    model = Model(
        lambda m, x: (
            m.lin(x.transpose(0, 1).reshape(-1, 3)).reshape(4, -1, 3).transpose(0, 1)
            + m.win(x.reshape(-1, 3)).view_as(x)
        ),
        lin=nn.Linear(3, 3),
        win=nn.Linear(3, 3),
    )
    ann = capture(model, torch.zeros(1, 4, 3))
    found = {origin(n): network.spec(n) for n in ann.graph.nodes if n.op == "call_function" and "spec" in n.meta}
    assert (found["lin"].outer, found["lin"].inner) == (False, True)
    assert found["win"].outer


class Chaotic(nn.Module):
    """Its layers make every rounding larger, until two ways of rounding give two answers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(30))
        for layer in self.layers:
            nn.init.normal_(layer.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def test_rounding_that_grows_is_not_taken_for_a_reckoning_with_the_size_of_the_batch():
    """A sum's last bit may depend on the number of rows."""
    model, x = Chaotic().eval(), torch.randn(2, 64)
    assert torch.equal(capture(model, x)(x), model(x))


# -- what is refused --------------------------------------------------------------------------------------------------


class Remembers(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        return x + self.seen


REFUSED = {
    "control flow on values": (
        Model(lambda m, x: x if x.sum() > 0 else -x),
        "Rewrite that part with tensor operations",
    ),
    ".item()": (Model(lambda m, x: x * x.max().item()), "'item' .*depends on data.*mask of fixed shape"),
    "buffer changed in forward": (Remembers(), r"its own buffer 'seen'.*pass the state in and out"),
    "dropout that is always on": (Model(lambda m, x: F.dropout(x)), "draws random numbers.*deterministic"),
    "noise": (Model(lambda m, x: x + torch.randn_like(x)), "draws random numbers"),
    "centring over the batch": (Model(lambda m, x: x - x.mean(0)), "'sub' .*mixes the samples.*BatchNorm in eval"),
    "maximum of the batch": (Model(lambda m, x: x / x.max()), "mixes the samples"),
    "minimum of the batch": (Model(lambda m, x: x - x.min()), "mixes the samples"),
    "sums along the batch": (Model(lambda m, x: x.cumsum(0)), "mixes the samples"),
    "previous sample": (Model(lambda m, x: x + x.roll(1, 0)), "mixes the samples"),
    "softmax over the batch": (Model(lambda m, x: x.softmax(0)), "mixes the samples"),
    "similarity of samples": (Model(lambda m, x: x @ x.T), "batch enters two dimensions"),
    "no answer per sample": (Model(lambda m, x: x.sum(0)), "does not depend on the batch"),
    "selection by value": (Model(lambda m, x: x[x > 0]), "data|captured"),
    "fixed batch": (Model(lambda m, x: x.reshape(2, 3)), "batch"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_an_snn_cannot_repeat_is_refused(case):
    model, message = REFUSED[case]
    with pytest.raises(CaptureError, match=f"(?s){message}"):
        capture(model, torch.randn(2, 3))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_named(value):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[0].weight.data[1, 1] = value
    with pytest.raises(CaptureError, match=r"'0\.weight' holds NaN or infinity.*Load sound weights"):
        capture(model, torch.zeros(1, 3))
    model[0].weight.data.zero_()
    model[1].running_var[0] = value
    with pytest.raises(CaptureError, match=r"'1\.running_var'"):
        capture(model, torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ((), "No example input"),
        (torch.zeros(0, 3), "batch dimension"),
        (torch.tensor(1.0), "batch dimension"),
        ([[1.0, 2.0]], "is a list"),
        (torch.zeros(1, 3).numpy(), "is a ndarray"),
        (torch.full((1, 3), float("nan")), "holds NaN"),
    ],
)
def test_unusable_examples(example, message):
    with pytest.raises(InputError, match=message):
        capture(nn.Linear(3, 3), example)


def test_what_is_no_module():
    with pytest.raises(InputError, match=r"The model is a function; pass an nn\.Module"):
        capture(lambda x: x, torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.zeros(1, 4), "could not capture Linear"),
        (torch.zeros(1, 3, dtype=torch.float64), "'linear' .*same dtype.*example"),
        ((torch.zeros(1, 3), torch.zeros(1, 3)), "could not capture Linear"),
    ],
)
def test_an_example_the_model_does_not_take(example, message):
    with pytest.raises(CaptureError, match=message):
        capture(nn.Linear(3, 3), example)


def test_stages_are_told_apart():
    with pytest.raises(StageError, match=r"did not come from spikezip.*capture\(model, example\)"):
        morph(torch.fx.symbolic_trace(nn.Linear(2, 2)))


def test_whatever_precision_was_chosen_for_cudnn():
    """torch.export itself fails under these settings: it reads them in an older way."""
    parts = torch.backends.cudnn.conv, torch.backends.cudnn.rnn
    before = [part.fp32_precision for part in parts]
    try:
        for part in parts:
            part.fp32_precision = "ieee"
        capture(nn.Linear(3, 2), torch.randn(2, 3))
        assert [part.fp32_precision for part in parts] == ["ieee", "ieee"]
    finally:
        for part, old in zip(parts, before, strict=True):
            part.fp32_precision = old
