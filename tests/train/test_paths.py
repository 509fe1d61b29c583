"""Paths: one network at several numbers of levels, and the steps of an SNN that each stands for."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from training_nets import Residual, chain, residual, traced

from published_lsq import published
from spikezip.errors import RecipeError, StageError
from spikezip.levels import Levels
from spikezip.quantize.quantizer import Quantizer
from spikezip.spike.encoding import Constant, Even, Pulse
from spikezip.train import PET, random_precision
from spikezip.train.ensemble import Folded, InTurn, PathsQuantizer, ensemble
from spikezip.train.paths import Capped, Main, PathScale, PathStatistics, Rescaled, paths_for

UNSIGNED, SIGNED = Levels(0, 7), Levels(-4, 4)


# -- what a path is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [UNSIGNED, SIGNED, Levels(-4, 3), Levels(-2, 8)])
@pytest.mark.parametrize("top", [1, 2, 4, 99])
def test_capped_codes_are_the_main_codes_capped(levels: Levels, top: int):
    drive, scale = torch.linspace(-6, 6, 997), 0.4
    reading = Capped(top).reading(levels)
    codes = reading.levels.codes(drive, scale * reading.factor)
    assert torch.equal(codes, levels.codes(drive, scale).clamp(-top, top))


@pytest.mark.parametrize("levels", [UNSIGNED, SIGNED, Levels(0, 8)])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_rescaled_path_clips_where_the_main_path_does(levels: Levels, steps: int):
    reading = Rescaled(steps).reading(levels)
    assert reading.levels.highest == steps
    assert reading.levels.highest * reading.factor == pytest.approx(levels.highest)
    assert reading.levels.lowest * reading.factor == pytest.approx(levels.lowest)


@pytest.mark.parametrize("path", [Capped(3), Rescaled(3), Rescaled(3, 12)])
@pytest.mark.parametrize("levels", [Levels(0, 1), Levels(-4, 3), Levels(-1, 9), Levels(-9, 0)])
def test_no_path_has_codes_the_main_path_lacks(path: Capped | Rescaled, levels: Levels):
    reading = path.reading(levels)
    assert levels.lowest <= reading.levels.lowest <= 0 <= reading.levels.highest <= levels.highest


def test_default_paths():
    assert paths_for(Pulse(), Levels(0, 3)) == (Capped(1), Capped(2))
    assert paths_for(Even(16), Levels(0, 15)) == (Rescaled(2, 16), Rescaled(4, 16), Rescaled(8, 16))
    assert paths_for(Pulse(), Levels(0, 1)) == ()
    with pytest.raises(RecipeError, match=r"Constant.*Even\(N\)"):
        paths_for(Constant(), UNSIGNED)


@pytest.mark.parametrize("make", [lambda: Capped(0), lambda: Rescaled(-1), lambda: Rescaled(True)])
def test_a_path_needs_a_level(make):
    with pytest.raises(StageError, match="whole number of levels"):
        make()


def test_a_release_may_not_end_before_the_step():
    with pytest.raises(StageError, match=r"Capped\(8\)"):
        Rescaled(8, release=4)


# -- the theorem: paths are time steps --------------------------------------------------------------------------------


class _NoLag(nn.Module):
    """A neuron without lag: at step t it holds any code of magnitude up to t."""

    def __init__(self, quantizer: Quantizer, t: int):
        super().__init__()
        self.quantizer, self.t = quantizer, t

    def forward(self, drive: Tensor) -> Tensor:
        self.codes = self.quantizer.codes(drive).clamp(-self.t, self.t)
        return self.codes * self.quantizer.scale


def no_lag_codes(network: nn.Module, image: Tensor, t: int, share: float) -> dict[str, Tensor]:
    """Codes of an SNN without lag at step t: input and biases have arrived by ``share``."""
    neurons = {name: _NoLag(m, t) for name, m in network.named_modules() if isinstance(m, Quantizer)}
    for name, neuron in neurons.items():
        setattr(network, name, neuron)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert module.bias is not None
            module.bias.data *= share
    network(image * share)
    return {name: neuron.codes for name, neuron in neurons.items()}


def path_codes(network, image: Tensor, path: Capped | Rescaled) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    paths = ensemble(network, [path])
    for name, module in paths.named_modules():
        if isinstance(module, PathsQuantizer):
            reading = module.readings[1]

            def keep(module, inputs, output, name=name, reading=reading):
                drive = inputs[0][len(inputs[0]) // 2 :]
                found[name] = reading.levels.codes(drive, module.quantizers[1].scale * reading.factor)

            module.register_forward_hook(keep)
    paths(image)
    return found


@pytest.mark.parametrize("levels", [(UNSIGNED, SIGNED), (Levels(0, 8), Levels(-4, 3)), (Levels(0, 4), Levels(-2, 5))])
@pytest.mark.parametrize("t", [1, 2, 3, 5, 7])
def test_codes_without_lag_are_a_sub_paths(levels: tuple[Levels, Levels], t: int):
    """FINDINGS: even release over n, step t == rescaled to t levels; pulse, step t == capped at t."""
    n = levels[0].highest if t <= levels[0].highest else 8
    for path, share in [(Rescaled(t, n), t / n), (Capped(t), 1.0)]:
        torch.manual_seed(t)
        module = Residual(*levels).double()
        image = torch.randn(16, 1, 4, 4, dtype=torch.float64) * 2
        with torch.no_grad():
            wanted = path_codes(traced(module), image, path)
            given = no_lag_codes(module, image, t, share)
        assert wanted.keys() == given.keys() == {"relu1", "mix", "relu2"}
        for name in wanted:
            assert torch.equal(wanted[name], given[name]), (path, name)
            assert wanted[name].unique().numel() > 1


# -- the ensemble -----------------------------------------------------------------------------------------------------

PATHS = (Capped(1), Rescaled(2), Rescaled(4, 7))


@pytest.mark.parametrize("path", [Capped(7), Rescaled(7), Capped(9)])
def test_the_main_path_again_is_none(path: Capped | Rescaled):
    with pytest.raises(StageError, match="is the main path again"):
        PET((Capped(1), path)).module(residual())


def gradients(network, execution) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(1)
    image, towards = torch.randn(6, 1, 4, 4, dtype=torch.float64), torch.randn(4, 6, 5, dtype=torch.float64)
    network.zero_grad()
    logits = ensemble(network, PATHS, execution)(image)
    (logits * towards).sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in network.named_parameters()}


@pytest.mark.parametrize("execution", [InTurn(), InTurn(recompute=True)])
def test_folded_and_in_turn_agree(execution: InTurn):
    network = residual(dtype=torch.float64)
    logits, grads = gradients(network, Folded())
    logits_in_turn, grads_in_turn = gradients(network, execution)
    assert logits.shape == (4, 6, 5)
    torch.testing.assert_close(logits, logits_in_turn, rtol=0, atol=1e-12)
    assert grads.keys() == grads_in_turn.keys()
    for name in grads:
        torch.testing.assert_close(grads[name], grads_in_turn[name], rtol=1e-10, atol=1e-12)
        assert grads[name].abs().sum() > 0, name


def test_scale_gradient_of_all_paths_is_the_published_formula_summed():
    torch.manual_seed(0)
    readings = [path.reading(SIGNED) for path in (Main(), Capped(2), Rescaled(3))]
    quantizer = Quantizer(SIGNED).double()
    quantizer.scale.data.fill_(0.3)
    drive = (torch.randn(3 * 4, 10, dtype=torch.float64)).requires_grad_()
    grad = torch.randn(3 * 4, 10, dtype=torch.float64)
    PathsQuantizer([quantizer] * 3, readings)(drive).backward(grad)
    to_scale, to_drive = 0.0, []
    for r, g, d in zip(readings, grad.split(4), drive.split(4), strict=True):
        part, slope = published(
            g.flatten().tolist(), d.flatten().tolist(), 0.3 * r.factor, r.levels.lowest, r.levels.highest, features=10
        )
        to_drive += part
        to_scale += r.factor * slope  # the chain rule through s_p = factor * s
    assert drive.grad is not None
    assert quantizer.scale.grad is not None
    assert drive.grad.flatten().tolist() == to_drive
    assert float(quantizer.scale.grad) == pytest.approx(to_scale, rel=1e-12)


@pytest.mark.parametrize("execution", [Folded(), InTurn(), InTurn(recompute=True)])
def test_free_scales_start_where_shared_ones_are_and_have_gradients_of_their_own(execution: Folded | InTurn):
    network, image = residual(dtype=torch.float64), torch.randn(6, 1, 4, 4, dtype=torch.float64)
    free = ensemble(network, PATHS, execution, PathScale.FREE)
    logits = free(image)
    torch.testing.assert_close(logits, ensemble(network, PATHS, execution)(image), rtol=0, atol=1e-12)
    shared = {id(p) for p in network.parameters()}
    own = [p for p in free.parameters() if id(p) not in shared]
    assert len(own) == 3 * len(PATHS), "one a quantizer and sub-path"
    logits[2].sum().backward()
    assert [p.grad is not None and bool(p.grad != 0) for p in own].count(True) == 3, "the second path's, and no other"
    for name in ("relu1", "mix", "relu2"):
        quantizer = network.get_submodule(name)
        assert isinstance(quantizer, Quantizer)
        assert quantizer.scale.grad is None or float(quantizer.scale.grad) == 0, "the main path's have no part in it"


def test_main_path_is_the_network_and_parameters_are_shared():
    network = residual()
    image = torch.randn(3, 1, 4, 4)
    for execution in (Folded(), InTurn()):
        paths = ensemble(network, PATHS, execution)
        assert {id(p) for p in paths.parameters()} == {id(p) for p in network.parameters()}
        torch.testing.assert_close(paths(image)[0], network(image), rtol=0, atol=1e-6)
    assert all(type(m) is Quantizer for m in (network.relu1, network.mix, network.relu2))


def test_each_path_alone_answers_as_it_does_in_the_ensemble():
    network, image = residual(dtype=torch.float64), torch.randn(3, 1, 4, 4, dtype=torch.float64)
    together = ensemble(network, PATHS)(image)
    for index, path in enumerate(PATHS, start=1):
        torch.testing.assert_close(together[index], ensemble(network, [path])(image)[1], rtol=0, atol=1e-12)
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(together, 2))


def test_several_outputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu, self.head = Quantizer(UNSIGNED, 0.2), nn.Linear(6, 3)

        def forward(self, x: Tensor):
            x = self.relu(x)
            return self.head(x), x

    for execution in (Folded(), InTurn()):
        logits, codes = ensemble(traced(Two()), [Capped(1)], execution)(torch.randn(4, 6))
        assert (logits.shape, codes.shape) == ((2, 4, 3), (2, 4, 6))
        assert codes[1].max().item() == pytest.approx(0.2)


class Normed(nn.Module):
    """Two live BatchNorms, one of them behind a sum."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), Quantizer(UNSIGNED, 0.3)
        self.conv2, self.bn2, self.relu2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), Quantizer(UNSIGNED, 0.3)
        self.head = nn.Linear(4 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        return self.head(self.relu2(self.bn2(self.conv2(x) + x)).flatten(1))


def normed() -> torch.fx.GraphModule:
    torch.manual_seed(0)
    return traced(Normed()).double()


def statistics(network: nn.Module) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in network.state_dict().items() if "running" in n}


def test_live_batch_norm_has_statistics_of_each_paths_own_samples():
    images = torch.randn(6, 1, 4, 4, dtype=torch.float64)
    found = {}
    for execution in (Folded(), InTurn()):
        network = normed()
        start = statistics(network)
        paths = ensemble(network, PATHS, execution).train()
        assert {id(p) for p in paths.parameters()} == {id(p) for p in network.parameters()}, "no weight of their own"
        for _ in range(2):
            logits = paths(images)
        (logits * torch.arange(4.0)[:, None, None]).sum().backward()
        gradients = [p.grad for p in network.parameters()]
        means = [t for n, t in paths.state_dict().items() if "bn2" in n and n.endswith("running_mean")]
        assert len(means) == 4
        assert all(not torch.equal(a, b) for a, b in itertools.combinations(means, 2)), "one statistic a path"
        found[type(execution)] = (logits.detach(), gradients, statistics(network))
        assert all(not torch.equal(t, start[n]) for n, t in statistics(network).items())
        paths.eval()
        settled = paths(images)
        assert not torch.allclose(settled, logits.detach()), "evaluation takes the running statistics"
        torch.testing.assert_close(settled[0], network.eval()(images), rtol=0, atol=1e-12)
    for folded, in_turn in zip(*found.values(), strict=True):
        torch.testing.assert_close(folded, in_turn, rtol=1e-9, atol=1e-12)


def test_shared_statistics_are_those_of_all_paths_together():
    images = torch.randn(6, 1, 4, 4, dtype=torch.float64)
    network = normed()
    paths = ensemble(network, PATHS, statistics=PathStatistics.SHARED).train()
    assert [n for n in paths.state_dict() if "running_mean" in n] == ["bn1.running_mean", "bn2.running_mean"]
    heard: list[Tensor] = []
    paths.get_submodule("bn2").register_forward_hook(lambda module, args, _: heard.append(args[0].detach()))
    before = statistics(network)["bn2.running_mean"]
    paths(images)
    (drive,) = heard
    assert len(drive) == 4 * 6
    own = statistics(network)["bn2.running_mean"]
    torch.testing.assert_close(own, 0.9 * before + 0.1 * drive.mean((0, 2, 3)), rtol=0, atol=1e-12)
    assert torch.equal(paths.eval()(images)[0], network.eval()(images)), "the main path's, and all others', in the SNN"
    with pytest.raises(StageError, match=r"those of one batch\. Use execution=Folded\(\)"):
        ensemble(normed(), PATHS, InTurn(), statistics=PathStatistics.SHARED)


@pytest.mark.parametrize("execution", [Folded(), InTurn()])
def test_each_paths_statistics_are_those_it_has_alone(execution: Folded | InTurn):
    images = torch.randn(6, 1, 4, 4, dtype=torch.float64)
    together = ensemble(normed(), PATHS, execution).train()
    together(images)
    answers = together.eval()(images)
    for index, path in enumerate(PATHS, start=1):
        alone = ensemble(normed(), [path], execution).train()
        alone(images)
        torch.testing.assert_close(alone.eval()(images)[1], answers[index], rtol=0, atol=1e-12)
    main = normed().train()
    main(images)
    torch.testing.assert_close(main.eval()(images), answers[0], rtol=0, atol=1e-12)


def test_what_pet_refuses():
    with pytest.raises(StageError, match=r"Sequential.*quantize\(\)"):
        ensemble(nn.Sequential(nn.Linear(2, 2)), [Capped(1)])  # type: ignore[arg-type]
    with pytest.raises(StageError, match="no quantizer"):
        ensemble(torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2))), [Capped(1)])
    live = traced(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), Quantizer(UNSIGNED)))
    with pytest.raises(StageError, match=r"'1' is a live BatchNorm.*morph\(\)"):
        ensemble(live, [Capped(1)], InTurn(recompute=True))
    with pytest.raises(StageError, match=r"'1' is a live BatchNorm"):
        random_precision(live, (1, 2))
    assert chain()(torch.zeros(2, 6)).shape == (2, 3)


def test_bfloat16_drives_keep_their_type():
    quantizer = Quantizer(UNSIGNED, 0.25)
    out = PathsQuantizer([quantizer] * 2, [Main().reading(UNSIGNED), Capped(1).reading(UNSIGNED)])(
        torch.randn(4, 3).bfloat16()
    )
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert quantizer.scale.grad is not None
    assert quantizer.scale.grad.dtype == torch.float32


def test_paths_that_differ_in_their_release_alone_are_logged_apart():
    objective = PET((Rescaled(4), Rescaled(4, 8)))
    _, numbers = objective.loss(objective.module(chain()), torch.randn(4, 6), torch.arange(4) % 3)
    assert {"loss/rescaled4", "loss/rescaled4of8"} <= numbers.keys()
