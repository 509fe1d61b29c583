"""Capture: the same graph however a model is written, the model left alone, and what cannot be converted refused."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize
from torch.nn import functional as F

import spikezip
from random_networks import Drawn, shuffle_statistics
from spikezip.errors import CaptureError, InputError, StageError
from spikezip.graph import Stage, capture, info, network, ops, origin, shapes
from spikezip.graph.quiet import quiet
from spikezip.morph import morph
from spikezip.run import Engine


class Model(nn.Module):
    """``forward`` is the given function of the module and its input."""

    def __init__(self, function: Callable[[Model, Tensor], Any], **parts: nn.Module | Tensor):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


@dataclass
class Answer:
    logits: Tensor
    version: int = 1


torch.export.register_dataclass(Answer)


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


@pytest.mark.parametrize(
    "squeeze",
    [Tensor.squeeze, Tensor.squeeze_, lambda h: h.squeeze((-1, 0)), lambda h: h.squeeze(0).squeeze(-1)],
    ids=["squeeze()", "squeeze_()", "squeeze((-1, 0))", "squeeze(0)"],
)
def test_a_batch_of_one_stays_a_batch(squeeze):
    model, images = Model(lambda m, x: squeeze(m.lin(x)), lin=nn.Linear(3, 1)), torch.randn(3, 3)
    ann = capture(model, images[:1])
    for batch in (1, 2, 3):
        torch.testing.assert_close(ann(images[:batch]), model.lin(images[:batch])[:, 0])
    assert [network.spec(n).batch_dim for n in network.outputs(ann)] == [0]


@pytest.mark.parametrize(
    ("function", "spelled"),
    [
        (lambda m, h: m.pair(h, m.lin(h)), ["linear", "mul", "unsqueeze"]),
        (lambda m, h: torch.lerp(h, m.lin(h), h), ["add", "linear", "mul", "sub"]),
        (lambda m, h: torch.lerp(h, m.lin(h), 0.3), ["add", "linear", "mul"]),
        (lambda m, h: torch.addcmul(m.lin(h), h, h, value=0.5), ["add", "linear", "mul"]),
        (lambda m, h: m.lin(h) ** 2, ["linear", "mul"]),
        (lambda m, h: m.lin(h).square_(), ["linear", "mul"]),
        (lambda m, h: torch.multiply(h, m.lin(h)), ["linear", "mul"]),
        (lambda m, h: F.glu(m.lin(h)), ["linear", "mul", "sigmoid", "slice"]),
        (lambda m, h: torch.inner(h, m.lin.weight), ["mm", "permute"]),
    ],
)
def test_products_are_spelled_out(function, spelled):
    model = Model(function, lin=nn.Linear(4, 4), pair=nn.Bilinear(4, 4, 3)).double()
    images = torch.randn(2, 4, dtype=torch.float64)
    ann = capture(model, images)
    assert sorted({*operations(ann)} - {"sym_size", "reshape"}) == spelled
    torch.testing.assert_close(ann(images), model(images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stored", [torch.rand(4), torch.tensor([1, 0, 1, 1]), torch.tensor([True, False, True, True])])
def test_what_lends_its_type_alone_has_no_say(stored):
    model = Model(lambda m, x: m.lin(x + m.stored.type_as(x)) * (x > 0).type_as(x), lin=nn.Linear(4, 4), stored=stored)
    ann, images = capture(model, torch.randn(2, 4)), torch.randn(3, 4)
    assert "type_as" not in operations(ann)
    assert torch.equal(ann(images), model(images))


@pytest.mark.parametrize("divided", [lambda h: 3 * h // 1, lambda h: h // h.abs().mean(1, keepdim=True)])
def test_whole_quotients_have_a_gradient(divided):
    """That of floor(): 0. ``aten.floor_divide`` has none."""
    model, images = Model(lambda m, x: m.lin(x) + divided(m.lin(x)), lin=nn.Linear(4, 4)), torch.randn(3, 4)
    ann = capture(model, images)
    assert torch.equal(ann(images), model(images))
    ann(images).sum().backward()
    assert torch.equal(ann.get_parameter("lin.weight").grad, images.sum(0).expand(4, 4))


def test_classes_of_a_given_number_have_a_fixed_shape():
    model, images = (
        Model(lambda m, x: m.lin(x)[..., None] * F.one_hot(x.argmax(1), 5)[:, None], lin=nn.Linear(5, 3)),
        torch.randn(4, 5),
    )
    assert torch.equal(capture(model, images[:1])(images), model(images))
    with pytest.raises(CaptureError, match="one_hot"):
        capture(Model(lambda m, x: x * F.one_hot(x.argmax(1))), images)


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda x: x.max(1)[0], ["amax"]),
        (lambda x: x.min(-1, keepdim=True)[0], ["amin"]),
        (lambda x: x.max(1), ["max", "getitem", "getitem"]),
    ],
)
def test_a_maximum_whose_place_nobody_reads(function, names):
    ann, x = capture(Model(lambda m, x: function(x)), torch.zeros(1, 4, 5)), torch.randn(3, 4, 5)
    assert operations(ann) == names
    for found, wanted in zip(ann(x), function(x), strict=True):
        assert torch.equal(found, wanted)


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


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda x, i: torch.take_along_dim(x, x.argsort(1), 1), ["argsort", "gather"]),
        (lambda x, i: x.take_along_dim(indices=i, dim=-2), ["sym_size", "expand", "gather"]),
        (
            lambda x, i: x[:, :, :1].take_along_dim(x.argsort(1), 1),
            ["argsort", "slice", "sym_size", "expand", "gather"],
        ),
    ],
    ids=["of each sample", "stored", "wider than the values"],
)
def test_places_along_a_dimension_are_gathered(function, names):
    """torch computes it from others that would fix the batch size."""
    places, x = nn.Buffer(torch.tensor([[[3], [0]]])), torch.randn(5, 4, 3)
    ann = capture(Model(lambda m, x: function(x, m.places), places=places), x[:1])
    assert sorted(operations(ann)) == sorted(names)
    assert torch.equal(ann(x), function(x, places))


class LastStep(nn.Module):
    """The value at each sequence's last step; lengths are counted from 1."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(3, 2)

    def forward(self, x: Tensor, length: Tensor) -> Tensor:
        return self.lin(x.gather(1, (length - 1)[:, None, None].expand(-1, 1, 3)).squeeze(1))


@pytest.mark.parametrize("lengths", [[1, 4, 2], [4], [2]])
def test_whole_numbers_are_drawn_as_the_example_has_them(lengths):
    inputs = torch.randn(len(lengths), 4, 3), torch.tensor(lengths)
    model = LastStep()
    torch.testing.assert_close(capture(model, inputs)(*inputs), model(*inputs))


def test_the_range_of_an_example_of_whole_numbers():
    found = [network.InputSpec.of(torch.tensor(v)).drawn for v in ([3, -2, 7], [5, 5], [0], [1], [-3], [2**63 - 1])]
    assert found == [(-2, 7), (1, 5), (0, 1), (0, 1), (-3, 1), (1, 2**63 - 2)]
    assert network.InputSpec.of(torch.tensor([True, True])).drawn == (0, 1)
    assert network.InputSpec.of(torch.tensor([5])) == network.InputSpec.of(torch.tensor([7]))


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


@pytest.mark.parametrize(
    ("function", "placed"),
    [
        (lambda x: x.reshape(-1, 3)[torch.arange(x.size(0)) * 4 + 2], {"arange", "mul", "add"}),
        (lambda x: x + torch.arange(4)[:, None] + x.new_ones(x.size(0))[:, None, None], set()),
        (lambda x: x * ((x[:, :1, :1] > -9).long().cumsum(0) <= 900), {"cumsum"}),
        (
            lambda x: (
                x.unflatten(1, (2, 2)).transpose(0, 1).flatten(0, 2).abs().unflatten(0, (2, -1, 2)).transpose(0, 1)
            ),
            set(),
        ),
    ],
)
def test_what_depends_on_the_place_in_the_batch_is_marked(function, placed):
    ann = capture(Model(lambda m, x: function(x)), torch.zeros(1, 4, 3))
    marked = [n for n in ann.graph.nodes if "spec" in n.meta and network.spec(n).placed]
    assert {network.op_name(n) for n in marked} == placed


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


class Many(nn.Module):
    """Takes as many inputs as it is given."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(3, 2)

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        return self.lin(x) + sum(more)


@pytest.mark.parametrize("more", [0, 1, 2])
def test_inputs_without_names(more):
    model, inputs = Many(), [torch.randn(2, 3), *(torch.randn(2, 2) for _ in range(more))]
    assert torch.equal(capture(model, inputs)(*inputs), model(*inputs))


@pytest.mark.parametrize("wrapped", [torch.compile, nn.DataParallel, torch.optim.swa_utils.AveragedModel])
def test_a_wrapped_model_is_the_model(wrapped):
    model, x = nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.randn(2, 3)
    assert torch.equal(capture(wrapped(model), x)(x), model(x))


@pytest.mark.parametrize("within", [False, True])
def test_what_torch_export_made(within):
    """It forbids eval(); the modules around it are in evaluation mode all the same."""
    x = torch.randn(2, 3)
    made = torch.export.export(nn.Linear(3, 3), (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module()
    model = nn.Sequential(made, nn.Dropout()) if within else made
    assert torch.equal(capture(model, x)(x), made(x))
    assert not within or model[1].training


@pytest.mark.parametrize("beside", ["a name", 1, None], ids=repr)
def test_what_is_no_tensor_beside_the_answer_is_left_out(beside):
    model, x = Model(lambda m, x: {"logits": m.lin(x), "more": beside}, lin=nn.Linear(3, 3)), torch.randn(2, 3)
    assert torch.equal(capture(model, x)(x), model(x)["logits"])


# -- what is refused --------------------------------------------------------------------------------------------------


class UnknownCache:
    """Stands for what a language model keeps for its next call."""


class Unknown:
    """No class that torch knows."""


class Remembers(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        return x + self.seen


def calls(model: Model) -> int:
    model.seen = getattr(model, "seen", 0) + 1
    return model.seen


#: Answers beside which something lies that is no tensor.
BESIDE = {"a number": lambda y: (y, 1), "a name": lambda y: {"logits": y, "of": "it"}, "a dataclass": Answer}


@pytest.mark.parametrize("beside", BESIDE)
def test_what_lies_beside_an_answer_does_not_hide_what_is_wrong_with_it(beside):
    unseen = Model(lambda m, x: BESIDE[beside](x if torch.compiler.is_exporting() else -x))
    with pytest.raises(CaptureError, match="the captured graph and the model answer differently"):
        capture(unseen, torch.randn(2, 3))
    counting = Model(lambda m, x: BESIDE[beside](x.roll(calls(m), 1)))
    with pytest.raises(CaptureError, match=r"two answers at .*pass the state in and out"):
        capture(counting, torch.randn(2, 3))


with quiet():  # it is deprecated, but there are files of it
    SCRIPT = torch.jit.trace(nn.ReLU(), torch.zeros(2, 3))


def with_buffer(tensor: Tensor) -> nn.Module:
    model = nn.Linear(3, 2)
    model.register_buffer("adjacency", tensor)
    return model


REFUSED = {
    "a sparse buffer": (with_buffer(torch.eye(3).to_sparse()), r"'adjacency' is torch.sparse_coo.*to_dense"),
    "a buffer of 8-bit floats": (
        with_buffer(torch.eye(3).to(torch.float8_e4m3fn)),
        "float8.*model.float",
    ),
    "a layer called graph": (nn.Sequential(OrderedDict(graph=nn.Linear(3, 2))), "'graph' .*torch.fx.*Rename it"),
    "a layer called _graph": (nn.Sequential(OrderedDict(_graph=nn.Linear(3, 2))), "'_graph' .*torch.fx.*Rename it"),
    "a layer called def": (nn.Sequential(OrderedDict({"def": nn.Linear(3, 2)})), "'def' .*torch.fx.*Rename it"),
    "a count of calls beside the answer": (
        Model(lambda m, x: (x, calls(m))),
        r"returns \[\d\], then \[\d\].*stateless",
    ),
    "tensors that torch.export does not see": (
        Model(lambda m, x: x if torch.compiler.is_exporting() else (x, x)),
        "returns 2 tensors, and 1 were captured",
    ),
    "a size beside the answer": (Model(lambda m, x: (x, x.shape[0])), r"a number \(sym_size\).*Return tensors alone"),
    "a class of its own": (Model(lambda m, x: Unknown()), "Unknown'> in output\n.*register_dataclass"),
    "a cache": (Model(lambda m, x: (x, UnknownCache())), "UnknownCache'> in output\n.*use_cache = False"),
    "code outside torch": (Model(lambda m, x: torch.from_numpy(x.numpy())), "code outside torch"),
    "TorchScript": (SCRIPT, "The model is TorchScript.*that it was made from"),
    "TorchScript within": (nn.Sequential(SCRIPT), "'0' is TorchScript"),
    "fake quantization": (
        nn.Sequential(nn.Linear(3, 2), FakeQuantize()),
        "'1' rounds.*convert the float model that prepare_qat was given",
    ),
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
    "pixels of 0..255, if any is above 1": (
        Model(lambda m, x: torch.where(x.max() > 1, x / 255, x)),
        "'max_1' .*makes one value of the samples.*x.amax",
    ),
    "whether any sample is far out": (
        Model(lambda m, x: torch.where((x > 90).any(), -x, x)),
        "'any_1' .*makes one value of the samples",
    ),
    "sums along the batch": (Model(lambda m, x: x.cumsum(0)), "mixes the samples"),
    "previous sample": (Model(lambda m, x: x + x.roll(1, 0)), "mixes the samples"),
    "an expert that takes few of the batch": (
        Model(lambda m, x: m.e(x) * ((x[:, :1] > -9).long().cumsum(0) <= 4), e=nn.Linear(3, 3)),
        "'cumsum' .*mixes the samples of a batch: among 256 images.*Reckon within each image",
    ),
    "an expert that takes few of all tokens": (
        Model(
            lambda m, x: m.e(x.reshape(-1, 1)).mul((x.reshape(-1, 1) > -9).long().cumsum(0) <= 90), e=nn.Linear(1, 3)
        ),
        "'cumsum' .*mixes the samples of a batch: among 256",
    ),
    "a number of samples": (Model(lambda m, x: x * ((x > -9).sum() <= 60)), "'sum_1' .*makes one value of the samples"),
    "a larger number of samples than is tried": (
        Model(lambda m, x: x * ((x > -9).sum() <= 9000)),
        "'sum_1' .*makes one value of the samples",
    ),
    "whether any number is above 1": (
        Model(lambda m, x: torch.where((x > 1).sum() > 0, x / 255, x)),
        "'sum_1' .*makes one value of the samples",
    ),
    "the size of a large batch": (Model(lambda m, x: x / max(x.shape[0], 20)), "mixes the samples.*among 256"),
    "the size of a larger batch than is tried": (
        Model(lambda m, x: x / max(x.shape[0], 300)),
        r"chooses by the size of the batch, at 'sym_max' \(sym_max\).*a batch of 512\.",
    ),
    "another branch for large batches": (
        Model(lambda m, x: x if x.shape[0] <= 8 else -x),
        r"chooses by the size of the batch, at test_capture.py:\d+ `.*<= 8 else.*a batch of 9\..*images or channels",
    ),
    "another branch for even batches": (
        Model(lambda m, x: x if x.shape[0] % 2 == 0 else -x),
        "chooses by the size of the batch, .*a batch of 3",
    ),
    "another branch for a single sample": (
        Model(lambda m, x: -x if x.shape[0] == 1 else x),
        "answers a single sample otherwise than the same samples in another batch.*x.size\\(1\\)",
    ),
    "times its number": (
        Model(lambda m, x: x * torch.arange(x.size(0))[:, None]),
        "'arange' .*by its place in the batch.*of positions, x.size\\(1\\)",
    ),
    "positions of sequence-first, in a network of batch-first": (
        Model(lambda m, x: (x + m.positions[: x.size(0)]).flip(1), positions=torch.randn(9, 3)),
        "'slice.*by its place in the batch",
    ),
    "softmax over the batch": (Model(lambda m, x: x.softmax(0)), "mixes the samples"),
    "similarity of samples": (Model(lambda m, x: x @ x.T), "batch enters two dimensions"),
    "no answer per sample": (Model(lambda m, x: x.sum(0)), "does not depend on the batch"),
    "selection by value": (Model(lambda m, x: x[x > 0]), "data|captured"),
    "fixed batch": (Model(lambda m, x: x.reshape(2, 3)), r"at 'Model', .*: torch.Tensor.reshape fixes the batch size"),
    "an operation that fixes the batch": (
        Model(lambda m, x: torch.kron(x, torch.ones(1, 2))),
        r"at 'Model', test_capture.py:\d+ `.*torch.kron fixes the batch size\n.*write it with others",
    ),
    "places in the whole batch": (Model(lambda m, x: x.take_along_dim(x.argsort(1))), "'gather' .*mixes the samples"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_an_snn_cannot_repeat_is_refused(case):
    model, message = REFUSED[case]
    with pytest.raises(CaptureError, match=f"(?s){message}"):
        capture(model, torch.randn(2, 3))


@pytest.mark.parametrize("model", [lambda m, x: x.sum(1, keepdim=True).squeeze(), lambda m, x: m.one(x)])
def test_what_fails_on_a_single_sample_or_drops_its_dimension_is_captured(model):
    class Few(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] == 1:
                raise ValueError("two samples or more")
            return 2 * x

    x = torch.randn(4, 3)
    own = Model(model, one=Few())
    assert torch.equal(capture(own, x[:2])(x), own(x))


def test_torchs_own_choice_by_the_size_of_the_batch_is_none():
    """cdist takes another way for large batches, with the same answer."""
    model = Model(lambda m, x: -torch.cdist(x, m.prototypes), prototypes=torch.randn(4, 3))
    x = torch.randn(40, 3)
    torch.testing.assert_close(capture(model, x[:2])(x), model(x))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_are_spelled_as_embeddings(mode, tmp_path):
    """So that every engine runs them and a bundle holds them; with factors too, where torch takes some."""

    class Bags(nn.Module):
        def __init__(self):
            super().__init__()
            self.bags, self.hidden, self.head = nn.EmbeddingBag(40, 6, mode=mode), nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor, factors: Tensor) -> Tensor:
            given = {"per_sample_weights": factors} if mode == "sum" else {}
            return self.head(torch.relu(self.hidden(self.bags(x, **given))) + factors.sum(1, keepdim=True))

    torch.manual_seed(0)
    inputs = torch.randint(0, 40, (20, 5)), torch.rand(20, 5)
    model = Bags()
    torch.testing.assert_close(capture(model, [x[:2] for x in inputs])(*inputs), model(*inputs))
    snn = spikezip.convert(model, [x[:2] for x in inputs], inputs, levels=64, weight_bits=16)
    loaded = spikezip.load(snn.save(tmp_path / "bags.spikezip"))
    for engine in Engine:
        assert spikezip.verify(loaded, inputs, engine=engine).equal


class Pair(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a - 2 * b


def test_one_tensor_twice_is_two_inputs():
    x = torch.randn(4, 3)
    ann = capture(Pair(), [x, x])
    assert torch.equal(ann(x, 3 * x), x - 6 * x)


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
    with pytest.raises(InputError, match=r"ExportedProgram; pass its \.module\(\)"):
        capture(torch.export.export(nn.Linear(3, 3), (torch.zeros(2, 3),)), torch.zeros(1, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.zeros(1, 4), r"\[1, 4\] float32, at 'Linear', linear.py.*shapes cannot be multiplied"),
        (torch.zeros(1, 3, dtype=torch.float64), r"\[1, 3\] float64, .*'weight' is float32.*x\.float\(\)"),
        ((torch.zeros(1, 3), torch.zeros(1, 3)), r"\[1, 3\] float32, \[1, 3\] float32: TypeError"),
    ],
)
def test_an_example_the_model_does_not_take(example, message):
    with pytest.raises(CaptureError, match=f"(?s)Linear does not take the example, {message}") as caught:
        capture(nn.Linear(3, 3), example)
    assert "Control flow" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("model", [nn.Linear(3, 3), nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 1, 3))])
def test_weights_of_another_type_than_the_example(model, dtype):
    with pytest.raises(CaptureError, match=rf"weight' is {str(dtype)[6:]}\. Convert the model, model\.float\(\)"):
        capture(copy.deepcopy(model).to(dtype), torch.zeros(1, 3))


def test_casts_between_float_types_are_the_models_own():
    model, x = Model(lambda m, x: m.lin(x.double()), lin=nn.Linear(3, 3).double()), torch.randn(2, 3)
    assert torch.equal(capture(model, x)(x), model(x))


def test_weights_that_are_not_there():
    with torch.device("meta"):
        model = nn.Linear(3, 3)
    with pytest.raises(
        CaptureError, match=r"'weight' is on the meta device: it has no values\. Load the weights first"
    ):
        capture(model, torch.zeros(1, 3))


def test_weights_made_where_nothing_is_learned():
    with torch.inference_mode():
        model, frozen = nn.Linear(3, 3), nn.Linear(3, 3).requires_grad_(False)
    with pytest.raises(CaptureError, match=r"'weight' was made under torch\.inference_mode\(\).*outside"):
        capture(model, torch.zeros(1, 3))
    x = torch.randn(2, 3)
    assert torch.equal(capture(frozen, x)(x), frozen(x))


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


def test_where_the_batch_lies_in_a_network_that_is_not_on_the_cpu():
    """The meta device is as far from the CPU as a GPU is, and everybody has one."""
    ann = capture(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.randn(2, 3))
    wanted = [n.meta.get("spec") for n in ann.graph.nodes]
    assert network.device(ann) == torch.device("cpu")
    assert network.device(ann.to("meta")) == torch.device("meta")
    shapes.annotate(ann)
    assert [n.meta.get("spec") for n in ann.graph.nodes] == wanted
    assert network.device(nn.ReLU()) == torch.device("cpu")


def test_sums_of_sizes_are_sizes():
    class Tiled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            n = x.shape[0]
            return x.reshape(-1, 2) + torch.ones(1, 2).expand(n + n, 2)

    ann = capture(Tiled(), torch.randn(2, 4))
    found = {str(n.target.__name__): ops.kind(n) for n in ann.graph.nodes if "spec" not in n.meta and n.op != "output"}
    assert len(found) > 1 and set(found.values()) == {ops.Kind.SIZE}


class LastValid(nn.Module):
    """The value at the last place that a mask of 0 and 1 leaves."""

    def forward(self, x: Tensor, m: Tensor) -> Tensor:
        return x[torch.arange(x.shape[0]), m.sum(1).long() - 1]


def test_floats_that_are_a_mask_are_drawn_as_one():
    x, m = torch.randn(8, 6, 3), (torch.arange(6) < torch.arange(8)[:, None] % 6 + 1).float()
    ann = capture(LastValid(), (x, m))
    assert torch.equal(ann(x, m), LastValid()(x, m))
    with pytest.raises(CaptureError, match=r"fails at .* on random inputs: .*whole numbers are drawn from its range"):
        capture(LastValid(), (x, m + 0.5 * torch.rand(8, 6)))
