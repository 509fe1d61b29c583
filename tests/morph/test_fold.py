"""Folding BatchNorm keeps the function to the last digits of float64, wherever the BatchNorm stands."""

from __future__ import annotations

import operator
import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batch_norm_networks import NETWORKS, STANDING_ALONE, captured
from random_networks import shuffle_statistics
from spikezip.errors import CaptureError, StageError
from spikezip.graph import capture, network
from spikezip.graph import rewrite as graph_rewrite
from spikezip.morph import BatchNorm, Morph, morph
from spikezip.morph.fold import LiveBatchNorm, fold_batch_norm, keep_batch_norm, refuse_live


def _batch_norms(gm) -> int:
    return sum("batch_norm" in network.op_name(n) for n in gm.graph.nodes)


@pytest.mark.parametrize("name", [*NETWORKS, *STANDING_ALONE])
def test_outputs_are_kept(name):
    model, ann, x = captured(name)
    before = {k: v.clone() for k, v in ann.state_dict().items()}
    folded = morph(ann)
    assert _batch_norms(ann) > 0
    assert _batch_norms(folded) == 0
    torch.testing.assert_close(folded(x), model(x), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(v, before[k]) for k, v in ann.state_dict().items())
    operations = [network.op_name(n) for n in folded.graph.nodes if n.op == "call_function"]
    assert ("mul" in operations) == (name in STANDING_ALONE)


@pytest.mark.parametrize("name", [*NETWORKS, *STANDING_ALONE])
def test_live_it_is_a_module_that_trains_and_folds_later(name):
    model, ann, x = captured(name)
    live = morph(ann, Morph(batch_norm=BatchNorm.LIVE))
    norms = {n: m for n, m in live.named_modules() if isinstance(m, LiveBatchNorm)}
    assert len(norms) == sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    assert norms.keys() <= dict(model.named_modules()).keys(), "they keep their author's names"
    assert _batch_norms(live) == 0
    torch.testing.assert_close(live(x), model(x), rtol=1e-12, atol=1e-12)
    for name, norm in norms.items():
        theirs = model.get_submodule(name)
        assert (norm.momentum, norm.eps) == (theirs.momentum, theirs.eps)
    again = morph(live, Morph(batch_norm=BatchNorm.LIVE))
    assert {n for n, m in again.named_modules() if isinstance(m, LiveBatchNorm)} == norms.keys()
    torch.testing.assert_close(again(x), live(x), rtol=1e-12, atol=1e-12)
    before = {n: m.running_mean.clone() for n, m in norms.items()}
    live.train()(x)
    assert all(not torch.equal(m.running_mean, before[n]) for n, m in norms.items()), "statistics follow the data"
    live.eval()
    folded = morph(live)
    assert not any(isinstance(m, LiveBatchNorm) for m in folded.modules())
    torch.testing.assert_close(folded(x), live(x), rtol=1e-12, atol=1e-12)


def test_a_batch_norm_called_twice_becomes_two():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, affine=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(F.relu(self.bn(x))))

    model, x = shuffle_statistics(Twice()).eval(), torch.randn(3, 2, 4, 4)
    live = morph(capture(model, x), Morph(batch_norm=BatchNorm.LIVE))
    assert {n for n, m in live.named_modules() if isinstance(m, LiveBatchNorm)} == {"bn", "bn_2"}
    torch.testing.assert_close(live(x), model(x))
    assert not any(n.startswith("bn") for n, p in live.named_parameters() if p.requires_grad), "no affine map to train"


@pytest.mark.parametrize("live", [False, True])
def test_what_comes_of_frozen_parameters_alone_is_frozen(live):
    """Of each pair, a convolution and its BatchNorm, other parts are frozen; the last BatchNorm stands alone."""
    layers = [m for _ in range(4) for m in (nn.Conv2d(2, 2, 1, bias=False), nn.BatchNorm2d(2))]
    model = nn.Sequential(*layers, nn.ReLU(), nn.BatchNorm2d(2))
    for module in (model[2], model[5], model[6], model[7], model[9].weight):
        module.requires_grad_(False)
    ann = capture(model.eval(), torch.zeros(1, 2, 3, 3))
    assert {n for n, p in ann.named_parameters() if not p.requires_grad} == {
        n for n, p in model.named_parameters() if not p.requires_grad
    }
    folded = morph(morph(ann, Morph(batch_norm=BatchNorm.LIVE)) if live else ann)
    trained = {re.sub(r"_\d", "", n): p.requires_grad for n, p in folded.named_parameters()}
    assert trained == {
        **{"0.weight": True, "0.bias": True, "2.weight": True, "2.bias": True, "4.weight": True, "4.bias": False},
        **{"6.weight": False, "6.bias": False, "9.weight": False, "9.bias": True},
    }


def test_no_running_statistics_are_refused():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(CaptureError, match=r"'1' .*mixes the samples of a batch.*BatchNorm in evaluation mode"):
        capture(model, torch.randn(2, 2, 3, 3))


def test_how_many_there_were():
    for name, count in {"shared convolution": 2, "conv2d": 1}.items():
        for rewrite in (fold_batch_norm, keep_batch_norm):
            assert rewrite(network.fork(captured(name)[1])) == count
    assert fold_batch_norm(morph(captured("conv2d")[1])) == 0
    assert keep_batch_norm(morph(captured("conv2d")[1])) == 0


@pytest.mark.parametrize("name", ["computed bias", "addmm of a signal", "addmm with factors"])
def test_a_bias_that_is_not_stored_is_not_folded_into(name):
    model, ann, x = captured(name)
    folded = network.fork(ann)
    fold_batch_norm(folded)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "tensors"),
    [("a weight in no module", {"weight_2", "weight_bias"}), ("conv2d", {"0.weight_2", "0.bias"})],
)
def test_folded_tensors_stand_beside_the_authors_own(name, tensors):
    folded = network.fork(captured(name)[1])
    fold_batch_norm(folded)
    assert set(folded.state_dict()) == tensors


class Gained(nn.BatchNorm2d):
    """BatchNorm with one more parameter under its name."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, input: Tensor) -> Tensor:
        return self.gain * super().forward(input)


class Elsewhere(nn.Module):
    """The BatchNorm is computed by a module that holds none of its tensors."""

    class Normalise(nn.Module):
        def forward(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
            return F.batch_norm(x, mean, var)

    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(2, 2, 1), Elsewhere.Normalise()
        self.mean, self.var = nn.Buffer(torch.randn(2)), nn.Buffer(torch.rand(2) + 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x), self.mean, self.var)


@pytest.mark.parametrize(
    ("model", "names"), [(nn.Sequential(nn.Conv2d(2, 2, 1), Gained(2)), {"1_2"}), (Elsewhere(), {"act"})]
)
def test_a_live_one_takes_no_name_that_holds_something_else(model, names):
    model, x = shuffle_statistics(model).eval(), torch.randn(3, 2, 4, 4)
    live = morph(capture(model, x), Morph(batch_norm=BatchNorm.LIVE))
    assert {n for n, m in live.named_modules() if isinstance(m, LiveBatchNorm)} == names
    torch.testing.assert_close(live(x), model(x))


@pytest.mark.parametrize("rewrite", [fold_batch_norm, keep_batch_norm])
def test_only_the_result_of_several_answers_can_be_used(rewrite):
    """Saved statistics that nobody reads go; those that are read are refused."""
    model, ann, x = captured("conv2d")
    both = network.fork(ann)
    result = next(n for n in both.graph.nodes if n.target is operator.getitem)
    norm = result.args[0]
    with both.graph.inserting_before(result):
        other = both.graph.call_function(operator.getitem, (norm, 1))
        first = both.graph.call_function(operator.getitem, (norm, 0))
    first.meta = dict(result.meta)
    graph_rewrite.replace(result, first)
    kept = network.fork(both)
    rewrite(kept)
    torch.testing.assert_close(kept(x), model(x), rtol=1e-12, atol=1e-12)
    with both.graph.inserting_after(other):
        both.graph.call_function(torch.ops.aten.neg.default, (other,))
    with pytest.raises(StageError, match=r"'1' .*hands out its statistics; only its result can be used"):
        rewrite(both)


@pytest.mark.parametrize("rewrite", [fold_batch_norm, keep_batch_norm])
def test_the_form_that_has_a_training_switch(rewrite):
    """``aten.batch_norm``, as graphs of other makers hold it: alike when the switch is off, refused when it is on."""
    _, ann, x = captured("another momentum")
    for training in (False, True):
        other = network.fork(ann)
        result = next(n for n in other.graph.nodes if n.target is operator.getitem)
        *tensors, momentum, eps = result.args[0].args
        with other.graph.inserting_before(result):
            norm = other.graph.call_function(
                torch.ops.aten.batch_norm.default, (*tensors, training, momentum, eps + 0.5, False)
            )
        norm.meta = dict(result.meta)
        graph_rewrite.replace(result, norm)
        graph_rewrite.tidy(other)
        if training:
            with pytest.raises(StageError, match=r"'1' .*normalises by the statistics of the batch"):
                rewrite(other)
            continue
        wanted = other(x)
        rewrite(other)
        torch.testing.assert_close(other(x), wanted, rtol=1e-12, atol=1e-12)
        for module in other.modules():
            if isinstance(module, LiveBatchNorm):
                assert (module.momentum, module.eps) == (0.3, eps + 0.5)


def test_a_live_one_is_refused_by_name():
    live = network.fork(captured("conv2d")[1])
    keep_batch_norm(live)
    with pytest.raises(StageError, match=r"'1' .*is a live BatchNorm, and spike\(\) takes a network without"):
        refuse_live(live, "spike")
    fold_batch_norm(live)
    refuse_live(live, "spike")


@pytest.mark.parametrize("momentum", [0.0, None, 0.3])
def test_live_it_follows_the_data_as_it_did(momentum):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, momentum=momentum), nn.ReLU()).eval()
    x = torch.randn(4, 1, 5, 5)
    live = morph(capture(model, x), Morph(batch_norm=BatchNorm.LIVE))
    for network_ in (live, model):
        network_.train()(x)
    assert live.get_submodule("1").momentum == momentum
    torch.testing.assert_close(live.get_submodule("1").running_mean, model[1].running_mean)
