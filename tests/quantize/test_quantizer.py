"""The quantizer: values and gradients as published, with ties up."""

from __future__ import annotations

import importlib
import math
import warnings

import pytest
import torch
from torch import Tensor

from published_lsq import published
from spikezip.levels import Levels
from spikezip.quantize.quantizer import LSQ, Quantizer, gradient_scale, lsq

# The function quantize hides the package of that name.
_FUSED, _QUANTIZER = (importlib.import_module(f"spikezip.quantize.{name}") for name in ("fused", "quantizer"))

UNSIGNED, SIGNED = Levels(0, 7), Levels(-4, 4)


def test_values_and_codes():
    quantizer = Quantizer(Levels(-2, 3), scale=0.5)
    drive = torch.tensor([-9.0, -1.25, -0.76, -0.25, -0.26, 0.0, 0.24, 0.25, 0.74, 0.75, 9.0])
    codes = [-2, -2, -2, 0, -1, 0, 0, 1, 1, 2, 3]
    assert quantizer.codes(drive).tolist() == codes
    assert quantizer(drive).tolist() == [0.5 * c for c in codes]


def test_a_new_quantizer():
    quantizer = Quantizer(UNSIGNED)
    assert quantizer.scale.item() == 1.0
    assert quantizer.scale.requires_grad
    assert not bool(quantizer.calibrated)
    assert set(quantizer.state_dict()) == {"scale", "calibrated"}
    assert "0..7, scale=0.125" in repr(Quantizer(UNSIGNED, 1 / 8))


def test_a_drive_keeps_its_type_and_is_not_written_to():
    drive = torch.tensor([0.3, 0.8], dtype=torch.bfloat16)
    given = drive.clone()
    out = lsq(drive, torch.tensor(0.5), UNSIGNED)
    assert out.dtype is torch.bfloat16
    assert out.tolist() == [0.5, 1.0]
    assert torch.equal(drive, given)


@pytest.mark.parametrize("count", [16, 64, 256])
def test_a_half_precise_drive_has_the_codes_and_gradients_of_its_numbers(count: int):
    """The value alone is rounded to bfloat16, and the gradient of the drive."""
    levels, draw = Levels.unsigned(count), torch.Generator().manual_seed(0)
    drive = (torch.rand(4, 999, generator=draw) * 1.2).bfloat16()
    grad = torch.randn(4, 999, generator=draw).bfloat16()
    answers = []
    for given in (drive, drive.float()):
        scale = torch.tensor(1.0 / 3 / levels.highest * 3.1, requires_grad=True)
        out = lsq(given.requires_grad_(), scale, levels)
        given_back = torch.autograd.grad(out, (given, scale), grad.to(out.dtype))
        answers.append((out.bfloat16(), given_back[0].bfloat16(), given_back[1]))
    for narrow, wide in zip(*answers, strict=True):
        assert torch.equal(narrow, wide)


@pytest.mark.parametrize(
    ("shape", "batch_dim", "wanted"),
    [((8, 3, 5), 0, 15), ((3, 8, 5), 1, 15), ((8,), 0, 1), ((), 0, 1), ((0, 4), 0, 1)],
)
def test_gradient_scale_counts_the_features_of_a_sample(shape: tuple[int, ...], batch_dim: int, wanted: int):
    assert gradient_scale(torch.zeros(shape), 4, batch_dim) == 1 / math.sqrt(wanted * 4)


def test_gradient_scale_takes_the_first_dimension_for_the_batch():
    assert gradient_scale(torch.zeros(8, 3, 5), 4) == 1 / math.sqrt(15 * 4)


def test_at_the_very_limits_lsq_is_outside():
    """As published: the limits themselves pass nothing on to the drive, and give the scale their code."""
    drive = torch.tensor([[0.0, 3.5, 0.25, 3.25, -0.5, 4.0]], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    grad = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0, 32.0]], dtype=torch.float64)
    lsq(drive, scale, UNSIGNED).backward(grad)
    want_drive, want_scale = published(grad[0].tolist(), drive[0].tolist(), 0.5, 0, 7, features=6)
    assert drive.grad is not None
    assert drive.grad[0].tolist() == want_drive == [0, 0, 4, 8, 0, 0]
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx(want_scale, rel=1e-12)


def test_a_scale_of_fewer_dimensions_than_the_drive():
    torch.manual_seed(0)
    drive, grad = torch.randn(2, 2, 4, 3, dtype=torch.float64)
    scale = torch.tensor([[0.3, 0.7, 0.5]], dtype=torch.float64, requires_grad=True)
    out = LSQ.apply(drive, scale, -2, 2, 1.0)
    assert isinstance(out, Tensor)
    out.backward(grad)
    assert scale.grad is not None
    for i in range(3):
        alone = scale.detach()[0, i].clone().requires_grad_()
        one = LSQ.apply(drive[..., i], alone, -2, 2, 1.0)
        assert isinstance(one, Tensor)
        one.backward(grad[..., i])
        assert alone.grad is not None
        assert float(scale.grad[0, i]) == pytest.approx(float(alone.grad), rel=1e-12)


def test_scales_of_several_paths_get_what_each_alone_would():
    """One entry a path, broadcast against the drive: values, and both gradients."""
    torch.manual_seed(0)
    drive, grad = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    scale = torch.tensor([0.3, 0.7, 0.5], dtype=torch.float64).reshape(3, 1, 1)
    low, high, gain = (torch.tensor(v).reshape(3, 1, 1) for v in ([0, -1, -4], [7, 1, 3], [0.5, 1.0, 0.25]))

    d, s = drive.clone().requires_grad_(), scale.clone().requires_grad_()
    out = LSQ.apply(d, s, low, high, gain)
    assert isinstance(out, Tensor)
    together = (out.detach(), *torch.autograd.grad(out, [d, s], grad))
    for path in range(3):
        d, s = drive[path].clone().requires_grad_(), scale[path, 0, 0].clone().requires_grad_()
        out = LSQ.apply(d, s, int(low[path]), int(high[path]), float(gain[path]))
        assert isinstance(out, Tensor)
        alone = (out.detach(), *torch.autograd.grad(out, [d, s], grad[path]))
        for one, every in zip(alone, together, strict=True):
            assert torch.allclose(one, every[path].reshape(one.shape), rtol=1e-13, atol=0)


@pytest.mark.parametrize("levels", [UNSIGNED, SIGNED, Levels(-4, 3), Levels(0, 1)])
def test_lsq_gradients_are_the_published_ones(levels: Levels):
    torch.manual_seed(0)
    drive = (torch.randn(5, 12, dtype=torch.float64) * 2).requires_grad_()
    scale = torch.tensor(0.37, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(5, 12, dtype=torch.float64)
    lsq(drive, scale, levels).backward(grad)
    want_drive, want_scale = published(
        grad.flatten().tolist(), drive.flatten().tolist(), 0.37, levels.lowest, levels.highest, features=12
    )
    assert drive.grad is not None
    assert drive.grad.flatten().tolist() == want_drive
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx(want_scale, rel=1e-12)


def test_outside_the_range_lsq_is_the_true_derivative():
    """Where every drive is clipped the staircase is differentiable: finite differences must agree."""
    drive = torch.tensor([[9.0, -9.0, 4.0, -7.0]], dtype=torch.float64)
    weights = torch.tensor([[1.0, -2.0, 0.5, 3.0]], dtype=torch.float64)
    scale = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
    (lsq(drive, scale, SIGNED) * weights).sum().backward()
    h = 1e-6
    with torch.no_grad():
        up, down = ((lsq(drive, scale + d, SIGNED) * weights).sum() for d in (h, -h))
    assert scale.grad is not None
    assert float(scale.grad) * math.sqrt(4 * 4) == pytest.approx(float((up - down) / (2 * h)), rel=1e-8)


def test_inside_the_range_the_scale_moves_the_grid_while_codes_keep():
    """Off ties d(s q)/ds = q by finite differences; LSQ's straight-through slope is that less u/s."""
    drive = torch.tensor([[0.31, 0.83, 1.13]], dtype=torch.float64)
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    lsq(drive, scale, UNSIGNED).sum().backward()
    h = 1e-7
    with torch.no_grad():
        true = float((lsq(drive, scale + h, UNSIGNED) - lsq(drive, scale - h, UNSIGNED)).sum() / (2 * h))
    assert scale.grad is not None
    assert float(scale.grad) * math.sqrt(3 * 7) == pytest.approx(true - float((drive / 0.5).sum()), rel=1e-6)


def test_gradient_scale_does_not_depend_on_how_a_batch_is_cut():
    torch.manual_seed(0)
    drive, grad = torch.randn(8, 6, dtype=torch.float64), torch.randn(8, 6, dtype=torch.float64)
    whole = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    parts = whole.detach().clone().requires_grad_()
    lsq(drive, whole, UNSIGNED).backward(grad / 8)
    for d, g in zip(drive.split([3, 5]), grad.split([3, 5]), strict=True):
        lsq(d, parts, UNSIGNED).backward(g / 8)
    assert whole.grad is not None
    assert parts.grad is not None
    assert float(whole.grad) == pytest.approx(float(parts.grad), rel=1e-12)


@pytest.mark.parametrize("columns", [False, True], ids=["one scale", "a scale a path"])
def test_compiled_or_not_the_same(columns: bool, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(3)
    drive, grad = torch.randn(2, 6, 33, 4) * 2
    parts = [0.7, 0.3], [0, -1], [7, 2]
    answers = []
    for least in (1 << 30, 1):
        monkeypatch.setattr(_FUSED, "_WORTH_COMPILING", least)
        scale, low, high = (torch.tensor(p).reshape(2, 1, 1, 1) if columns else torch.tensor(p[0]) for p in parts)
        x, theta = drive.unflatten(0, (2, 3)).clone().requires_grad_(), scale.requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # without a compiler the plain function runs, and says so
            out = LSQ.apply(x, theta, low if columns else 0, high if columns else 7, 0.5)
            assert isinstance(out, Tensor)
            out.backward(grad.unflatten(0, (2, 3)))
        answers.append((out.detach(), x.grad, theta.grad))
    for plain, compiled in zip(*answers, strict=True):
        torch.testing.assert_close(compiled, plain)


def test_only_what_is_trained_is_compiled(monkeypatch: pytest.MonkeyPatch):
    """The bits that an SNN is held to are torch's own."""
    told: list[str] = []

    def compiled(drive: Tensor, scale: Tensor, *limits: int) -> Tensor:
        told.append("compiled")
        return drive

    monkeypatch.setattr(_QUANTIZER, "_climbed_in_one_pass", compiled)
    quantizer, drive = Quantizer(UNSIGNED, 0.5), torch.tensor([0.3, 9.0])
    with torch.no_grad():
        assert quantizer(drive).tolist() == [0.5, 3.5]
        assert quantizer(drive.clone().requires_grad_()).tolist() == [0.5, 3.5]
    assert not told
    quantizer(drive)
    assert len(told) == 1
    quantizer.requires_grad_(False)
    assert quantizer(drive).tolist() == [0.5, 3.5]
    assert len(told) == 1
    quantizer(drive.clone().requires_grad_())
    assert len(told) == 2
