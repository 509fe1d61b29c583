"""Networks of one operation each: a convolutional stem, the operation, a linear head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

WIDTH, SIDE = 4, 6  #: what the operation receives is ``[B, WIDTH, SIDE, SIDE]``

Forward = Callable[["Single", Tensor], Tensor]


class Single(nn.Module):
    """``head(flatten(operation(relu(stem(x)))))``; ``stem`` and ``head`` are spikes' first and last synapses."""

    def __init__(self, operation: Forward, parts: dict[str, nn.Module | Tensor]):
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.operation = operation
        for name, part in parts.items():
            setattr(self, name, part)
        self.eval()
        with torch.no_grad():
            features = operation(self, torch.rand(2, WIDTH, SIDE, SIDE)).flatten(1).shape[1]
        self.head = nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.operation(self, F.relu(self.stem(x))).flatten(1))


@dataclass(frozen=True)
class Op:
    """One row: what the operation is, and the modules and tensors it needs (made when the network is)."""

    name: str
    forward: Forward
    parts: Callable[[], dict[str, nn.Module | Tensor]] = dict

    def network(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return Single(self.forward, self.parts())

    @property
    def images(self) -> Tensor:
        return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))


def _module(name: str, make: Callable[[], nn.Module]) -> Op:
    return Op(name, lambda m, x: m.layer(x), lambda: {"layer": make()})


def _tokens(name: str, forward: Forward, parts: Callable[[], dict[str, nn.Module | Tensor]] = dict) -> Op:
    """The operation receives ``[B, tokens, WIDTH]``."""
    return Op(name, lambda m, x: forward(m, x.flatten(2).transpose(1, 2)), parts)


def _attention(m: Single, x: Tensor, mask: Tensor | None = None, **choices: bool) -> Tensor:
    q, k, v = m.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **choices).transpose(1, 2).flatten(2)


def _spelled_attention(m: Single, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).chunk(3, dim=-1)
    scores = (q @ k.transpose(-2, -1)) / WIDTH**0.5
    return torch.softmax(scores.masked_fill(m.mask, float("-inf")), dim=-1) @ v


def _qkv() -> dict[str, nn.Module | Tensor]:
    return {"qkv": nn.Linear(WIDTH, 3 * WIDTH), "mask": nn.Buffer(torch.ones(36, 36).triu(1).bool())}


def _bn(layer: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(2)
    for norm in layer.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.normal_(generator=generator)
            norm.running_var.uniform_(0.3, 2.0, generator=generator)
            norm.weight.data.uniform_(-1.5, 1.5, generator=generator)
            norm.bias.data.normal_(generator=generator)
    return layer


def _squeeze(m: Single, x: Tensor) -> Tensor:
    return x * torch.sigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(x, 1)))))


def _squeezer() -> dict[str, nn.Module | Tensor]:
    return {"down": nn.Conv2d(WIDTH, 2, 1), "up": nn.Conv2d(2, WIDTH, 1)}


def _writes(m: Single, x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :2] = 2 * x[:, 2:]
    x[:, 0, 0, 0] = 1.0
    x[x > 1] = 1.0
    return x


def _rotated(m: Single, x: Tensor) -> Tensor:
    numbers = torch.view_as_complex(x.unflatten(1, (2, 2)).movedim(2, -1).contiguous())
    return torch.view_as_real(numbers * (1 + 2j)).flatten(1)


def _grid_of(maps: Tensor, x: Tensor) -> Tensor:
    return F.affine_grid(maps, [x.shape[0], WIDTH, 5, 5], align_corners=False)


def _looped(m: Single, x: Tensor) -> Tensor:
    state = x[:, :3, 0, 0]
    for step in x[:, :, 0, :3].unbind(-1):
        state = m.layer(step, state)
    return state


def _hooked() -> dict[str, nn.Module | Tensor]:
    layer = nn.Conv2d(WIDTH, 3, 1)
    layer.register_forward_pre_hook(lambda module, given: (given[0] + 1,))
    layer.register_forward_hook(lambda module, given, result: 2 * result)
    return {"layer": layer}


OPS: tuple[Op, ...] = (
    Op("conv1d", lambda m, x: m.layer(x.flatten(2)), lambda: {"layer": nn.Conv1d(WIDTH, 3, 3, padding=1)}),
    _module("conv2d", lambda: nn.Conv2d(WIDTH, 3, 3, stride=2)),
    Op("conv3d", lambda m, x: m.layer(x.unsqueeze(1)), lambda: {"layer": nn.Conv3d(1, 2, 3)}),
    _module("grouped convolution", lambda: nn.Conv2d(WIDTH, WIDTH, 3, groups=2)),
    _module("depthwise convolution", lambda: nn.Conv2d(WIDTH, 2 * WIDTH, 3, groups=WIDTH)),
    _module("dilated convolution", lambda: nn.Conv2d(WIDTH, 3, 3, dilation=2, padding=2)),
    _module("convolution padded with reflection", lambda: nn.Conv2d(WIDTH, 3, 3, padding=1, padding_mode="reflect")),
    _module("convolution padded 'same'", lambda: nn.Conv2d(WIDTH, 3, 4, padding="same")),
    _module("transposed convolution 2d", lambda: nn.ConvTranspose2d(WIDTH, 3, 3, stride=2)),
    _module("transposed grouped convolution", lambda: nn.ConvTranspose2d(WIDTH, 6, 3, stride=2, groups=2)),
    Op("transposed convolution 1d", lambda m, x: m.layer(x.flatten(2)),
       lambda: {"layer": nn.ConvTranspose1d(WIDTH, 3, 2)}),
    Op("transposed convolution 3d", lambda m, x: m.layer(x.unsqueeze(1)),
       lambda: {"layer": nn.ConvTranspose3d(1, 2, 2)}),
    _tokens("linear on tokens", lambda m, x: m.layer(x), lambda: {"layer": nn.Linear(WIDTH, 3)}),
    Op("bilinear layer by hand", lambda m, x: torch.einsum("bchw,cd->bdhw", x, m.weight),
       lambda: {"weight": nn.Parameter(torch.randn(WIDTH, 3))}),
    Op("matmul with a parameter", lambda m, x: x @ m.weight, lambda: {"weight": nn.Parameter(torch.randn(SIDE, 3))}),
    _tokens("nn.Bilinear", lambda m, x: m.layer(x, x.flip(1)), lambda: {"layer": nn.Bilinear(WIDTH, WIDTH, 3)}),
    # pooling
    _module("max pooling", lambda: nn.MaxPool2d(3, 2, 1)),
    _module("max pooling, ceil and dilation", lambda: nn.MaxPool2d(2, 2, 0, dilation=2, ceil_mode=True)),
    Op("max pooling 1d", lambda m, x: F.max_pool1d(x.flatten(2), 3, 2)),
    Op("max pooling 3d", lambda m, x: F.max_pool3d(x, 2)),
    _module("average pooling", lambda: nn.AvgPool2d(2)),
    _module("average pooling, padded", lambda: nn.AvgPool2d(3, 2, 1)),
    _module("average pooling, border not counted", lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
    _module("average pooling, ceil", lambda: nn.AvgPool2d(4, 4, ceil_mode=True)),
    _module("average pooling, divisor given", lambda: nn.AvgPool2d(3, 2, divisor_override=5)),
    Op("average pooling 1d", lambda m, x: F.avg_pool1d(x.flatten(2), 3, 2, 1)),
    Op("average pooling 3d", lambda m, x: F.avg_pool3d(x, 2)),
    _module("adaptive average pooling to 1", lambda: nn.AdaptiveAvgPool2d(1)),
    _module("adaptive average pooling, even windows", lambda: nn.AdaptiveAvgPool2d((3, 2))),
    _module("adaptive average pooling, uneven windows", lambda: nn.AdaptiveAvgPool2d((4, 5))),
    Op("adaptive average pooling 1d", lambda m, x: F.adaptive_avg_pool1d(x.flatten(2), 7)),
    Op("adaptive average pooling 3d", lambda m, x: F.adaptive_avg_pool3d(x, (2, 4, 1))),
    _module("adaptive max pooling, uneven windows", lambda: nn.AdaptiveMaxPool2d(4)),
    _module("power-average pooling", lambda: nn.LPPool2d(2, 2)),
    Op("mean over space", lambda m, x: x.mean((2, 3))),
    Op("mean over channels", lambda m, x: x.mean(1, keepdim=True)),
    Op("sum and maximum over space", lambda m, x: x.sum((2, 3)) + x.amax((2, 3))),
    # activations
    _module("ReLU", nn.ReLU),
    Op("ReLU behind a convolution", lambda m, x: F.relu(m.layer(x)), lambda: {"layer": nn.Conv2d(WIDTH, 3, 1)}),
    *(
        Op(f"{name} behind a convolution", lambda m, x: m.act(m.layer(x)),
           lambda make=make: {"layer": nn.Conv2d(WIDTH, 3, 1), "act": make()})
        for name, make in {
            "ReLU6": nn.ReLU6, "LeakyReLU": lambda: nn.LeakyReLU(0.1), "PReLU": lambda: nn.PReLU(3),
            "hardswish": nn.Hardswish, "hardsigmoid": nn.Hardsigmoid, "SiLU": nn.SiLU, "GELU": nn.GELU,
            "GELU (tanh)": lambda: nn.GELU("tanh"), "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "ELU": nn.ELU,
            "SELU": nn.SELU, "CELU": nn.CELU, "Mish": nn.Mish, "Softplus": nn.Softplus, "Hardtanh": nn.Hardtanh,
            "LogSigmoid": nn.LogSigmoid, "Softsign": nn.Softsign, "Tanhshrink": nn.Tanhshrink,
            "Softshrink": nn.Softshrink, "Hardshrink": nn.Hardshrink, "Threshold": lambda: nn.Threshold(0.1, 0.0),
            "RReLU": nn.RReLU, "GLU": lambda: nn.GLU(dim=2),
        }.items()
    ),
    Op("clamp", lambda m, x: m.layer(x).clamp(-0.5, 1.5), lambda: {"layer": nn.Conv2d(WIDTH, 3, 1)}),
    Op("square, square root, absolute value", lambda m, x: (m.layer(x).abs() + 1).sqrt() + m.layer(x) ** 2,
       lambda: {"layer": nn.Conv2d(WIDTH, 3, 1)}),
    # normalisation
    _module("BatchNorm behind spikes", lambda: _bn(nn.BatchNorm2d(WIDTH))),
    _module("BatchNorm behind a convolution", lambda: _bn(nn.Sequential(nn.Conv2d(WIDTH, 3, 3), nn.BatchNorm2d(3)))),
    _module("BatchNorm before a convolution",
            lambda: _bn(nn.Sequential(nn.BatchNorm2d(WIDTH), nn.Conv2d(WIDTH, 3, 3)))),
    _module("BatchNorm behind a transposed convolution",
            lambda: _bn(nn.Sequential(nn.ConvTranspose2d(WIDTH, 6, 3, groups=2), nn.BatchNorm2d(6)))),
    _module("BatchNorm twice",
            lambda: _bn(nn.Sequential(nn.Conv2d(WIDTH, 3, 3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)))),
    Op("BatchNorm1d behind a linear layer", lambda m, x: m.norm(m.layer(x.flatten(1))),
       lambda: {"layer": nn.Linear(WIDTH * SIDE**2, 5), "norm": _bn(nn.BatchNorm1d(5))}),
    Op("BatchNorm3d", lambda m, x: m.layer(x.unsqueeze(2)), lambda: {"layer": _bn(nn.BatchNorm3d(WIDTH))}),
    _module("GroupNorm", lambda: nn.GroupNorm(2, WIDTH)),
    _module("InstanceNorm", lambda: nn.InstanceNorm2d(WIDTH, affine=True)),
    _module("local response normalisation", lambda: nn.LocalResponseNorm(3)),
    _tokens("LayerNorm", lambda m, x: m.layer(x), lambda: {"layer": nn.LayerNorm(WIDTH)}),
    _tokens("RMSNorm", lambda m, x: m.layer(x), lambda: {"layer": nn.RMSNorm(WIDTH)}),
    Op("L2 normalisation", lambda m, x: F.normalize(x, dim=1)),
    # streams that meet
    Op("squeeze-excitation", _squeeze, _squeezer),
    Op("residual sum", lambda m, x: F.relu(m.layer(x) + x), lambda: {"layer": nn.Conv2d(WIDTH, WIDTH, 1)}),
    Op("difference and scaled sum", lambda m, x: torch.add(m.layer(x) - x, x, alpha=0.5) * 0.7,
       lambda: {"layer": nn.Conv2d(WIDTH, WIDTH, 1)}),
    Op("layer scale", lambda m, x: x + m.gamma * m.layer(x),
       lambda: {"layer": nn.Conv2d(WIDTH, WIDTH, 1), "gamma": nn.Parameter(torch.rand(WIDTH, 1, 1))}),
    Op("concatenation", lambda m, x: m.join(torch.cat([x, F.relu(m.layer(x))], 1)),
       lambda: {"layer": nn.Conv2d(WIDTH, 3, 1), "join": nn.Conv2d(WIDTH + 3, 2, 1)}),
    Op("stack and maximum of two", lambda m, x: torch.maximum(*torch.stack([x, x.flip(1)]).unbind(0))),
    Op("product of two streams", lambda m, x: m.join(x * F.relu(m.layer(x))),
       lambda: {"layer": nn.Conv2d(WIDTH, WIDTH, 1), "join": nn.Conv2d(WIDTH, 2, 1)}),
    Op("quotient of two streams", lambda m, x: x / (1 + F.relu(m.layer(x))),
       lambda: {"layer": nn.Conv2d(WIDTH, WIDTH, 1)}),
    Op("where", lambda m, x: torch.where(x > 0.3, x, -x)),
    # shapes
    Op("split and chunk", lambda m, x: x.split([1, 3], 1)[1] * 2 + x.chunk(2, 3)[0].mean(3, keepdim=True)[:, :3]),
    Op("pad with a number", lambda m, x: F.pad(x, (1, 2, 0, 1), value=0.3)),
    Op("pad by reflection, replication, rolling",
       lambda m, x: F.pad(x, (1,) * 4, "reflect") + F.pad(x, (1,) * 4, "replicate") + F.pad(x, (1,) * 4, "circular")),
    Op("roll, flip, permute", lambda m, x: x.roll((1, 2), (2, 3)).flip(1).permute(0, 2, 3, 1)),
    Op("slices", lambda m, x: x[:, ::2, 1:, :-1] - x[:, 1::2, :-1, 1:]),
    Op("channel shuffle", lambda m, x: F.channel_shuffle(x, 2)),
    Op("pixel shuffle and back", lambda m, x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 3)),
    Op("unfold", lambda m, x: F.unfold(x, 3, stride=3)),
    Op("gather by stored indices", lambda m, x: x.flatten(2)[:, :, m.index],
       lambda: {"index": nn.Buffer(torch.tensor([3, 0, 5, 5]))}),
    Op("upsample, nearest", lambda m, x: F.interpolate(x, scale_factor=2)),
    Op("upsample, bilinear", lambda m, x: F.interpolate(x, size=(9, 7), mode="bilinear")),
    Op("upsample, bicubic, aligned", lambda m, x: F.interpolate(x, size=9, mode="bicubic", align_corners=True)),
    Op("repeat and tile", lambda m, x: x.repeat(1, 1, 2, 1) + x.tile((2, 1))),
    Op("cumulative sum", lambda m, x: x.cumsum(2)),
    # nothing at inference
    Op("dropout", lambda m, x: F.dropout2d(m.drop(x), training=m.training), lambda: {"drop": nn.Dropout(0.4)}),
    Op("alpha dropout and identity", lambda m, x: m.drop(m.same(x)),
       lambda: {"drop": nn.AlphaDropout(0.4), "same": nn.Identity()}),
    # attention
    _tokens("scaled dot-product attention", _attention, _qkv),
    _tokens("causal attention", lambda m, x: _attention(m, x, is_causal=True), _qkv),
    _tokens("attention with a stored mask", lambda m, x: _attention(m, x, ~m.mask), _qkv),
    _tokens("attention with a bias", lambda m, x: _attention(m, x, m.bias),
            lambda: {**_qkv(), "bias": nn.Parameter(torch.randn(36, 36))}),
    _tokens("explicit masked attention", _spelled_attention, _qkv),
    _tokens("nn.MultiheadAttention", lambda m, x: m.layer(x, x, x, need_weights=False)[0],
            lambda: {"layer": nn.MultiheadAttention(WIDTH, 2, batch_first=True)}),
    _tokens("nn.MultiheadAttention from a stored query",
            lambda m, x: m.layer(m.query.repeat(x.shape[0], 1, 1), x, x)[0],
            lambda: {"layer": nn.MultiheadAttention(WIDTH, 2, batch_first=True),
                     "query": nn.Parameter(torch.randn(1, 3, WIDTH))}),
    _tokens("nn.MultiheadAttention, sequence first", lambda m, x: m.layer(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1),
            lambda: {"layer": nn.MultiheadAttention(WIDTH, 2)}),
    _tokens("grouped-query attention", lambda m, x: F.scaled_dot_product_attention(
        m.q(x).unflatten(-1, (4, 2)).transpose(1, 2), *[m.kv(x).unflatten(-1, (2, 2)).transpose(1, 2)] * 2,
        enable_gqa=True), lambda: {"q": nn.Linear(WIDTH, 8), "kv": nn.Linear(WIDTH, 4)}),
    _tokens("nn.TransformerEncoderLayer", lambda m, x: m.layer(x),
            lambda: {"layer": nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True)}),
    _tokens("softmax between linear layers", lambda m, x: m.layer(x.softmax(-1)),
            lambda: {"layer": nn.Linear(WIDTH, 3)}),
    # what strangers write
    Op("activations in place", lambda m, x: F.hardtanh_(F.relu_(m.layer(x)).mul_(2).add_(0.5)),
       lambda: {"layer": nn.Conv2d(WIDTH, 3, 1)}),
    Op("writes into a slice and under a mask", _writes),
    Op("two averages in a row", lambda m, x: F.interpolate(x, scale_factor=0.5, mode="area").mean((2, 3))),
    Op("upsample, nearest-exact", lambda m, x: F.interpolate(x, size=(9, 7), mode="nearest-exact")),
    Op("max pooling with indices, and back", lambda m, x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)),
    Op("maximum of channel groups", lambda m, x: m.layer(x).unflatten(1, (3, 2)).amax(2),
       lambda: {"layer": nn.Conv2d(WIDTH, 6, 1)}),
    Op("generalised-mean pooling", lambda m, x: x.clamp(min=1e-6).pow(m.p).mean((2, 3)).pow(1 / m.p),
       lambda: {"p": nn.Parameter(torch.tensor(3.0))}),
    Op("the greatest values", lambda m, x: x.flatten(2).topk(5)[0].sort(-1)[0]),
    Op("median, deviation, log-sum-exp", lambda m, x: x.flatten(2).median(2)[0] + x.std((2, 3)) + x.logsumexp((2, 3))),
    Op("powers, logarithms, quotients",
       lambda m, x: torch.log1p(x) + x.pow(1.5) + torch.exp(-x) + torch.rsqrt(x + 1) + 1 / x.clamp(min=0.1)),
    Op("steps: sign and rounding", lambda m, x: torch.sign(m.layer(x)) + torch.round(x * 4) / 4,
       lambda: {"layer": nn.Conv2d(WIDTH, WIDTH, 1)}),
    Op("product over a dimension", lambda m, x: x.prod(1)),
    Op("scatter-add",
       lambda m, x: x.new_zeros(x.shape[0], 2).scatter_add(1, m.index.expand(x.shape[0], -1), x.mean((2, 3))),
       lambda: {"index": nn.Buffer(torch.tensor([0, 1, 1, 0]))}),
    Op("Fourier transform", lambda m, x: torch.view_as_real(torch.fft.rfft2(x)).square().sum(-1).sqrt()),
    Op("complex numbers", _rotated),
    Op("inverse of a matrix", lambda m, x: torch.linalg.inv(x.mean(1)[:, :3, :3] + 3 * torch.eye(3).to(x))),
    Op("sampling on a fixed grid", lambda m, x: F.grid_sample(x, _grid_of(m.map.expand(x.shape[0], -1, -1), x),
       align_corners=False), lambda: {"map": nn.Buffer(torch.tensor([[[0.8, 0.1, 0.0], [-0.1, 0.9, 0.1]]]))}),
    Op("sampling on a predicted grid (spatial transformer)", lambda m, x: F.grid_sample(
        x, _grid_of(0.1 * m.layer(x.flatten(1)).unflatten(1, (2, 3)) + torch.eye(2, 3).to(x), x), align_corners=False),
       lambda: {"layer": nn.Linear(WIDTH * SIDE**2, 6)}),
    Op("convolution spelled out by unfold and fold",
       lambda m, x: F.fold(m.weight @ F.unfold(x, 3, padding=1), (6, 6), 1),
       lambda: {"weight": nn.Parameter(torch.randn(3, 9 * WIDTH) / 6)}),
    Op("standardised weights", lambda m, x: F.conv2d(
        x, (m.weight - m.weight.mean((1, 2, 3), True)) / m.weight.std((1, 2, 3), keepdim=True)),
       lambda: {"weight": nn.Parameter(torch.randn(3, WIDTH, 3, 3))}),
    _module("weight normalisation", lambda: parametrizations.weight_norm(nn.Conv2d(WIDTH, 3, 3))),
    _module("spectral normalisation", lambda: parametrizations.spectral_norm(nn.Conv2d(WIDTH, 3, 3))),
    _module("pruned weights", lambda: prune.l1_unstructured(nn.Conv2d(WIDTH, 3, 3), "weight", 0.5)),
    Op("weights made by the network", lambda m, x: m.layer(x.mean((2, 3))).unflatten(1, (3, WIDTH)) @ x.flatten(2),
       lambda: {"layer": nn.Linear(WIDTH, 3 * WIDTH)}),
    Op("highway", lambda m, x: torch.sigmoid(m.gate(x)) * F.relu(m.layer(x)) + (1 - torch.sigmoid(m.gate(x))) * x,
       lambda: {"gate": nn.Conv2d(WIDTH, WIDTH, 1), "layer": nn.Conv2d(WIDTH, WIDTH, 1)}),
    Op("distances to prototypes", lambda m, x: -torch.cdist(x.mean((2, 3)), m.prototypes),
       lambda: {"prototypes": nn.Parameter(torch.randn(5, WIDTH))}),
    _tokens("attention by cosines", lambda m, x: F.cosine_similarity(
        m.qkv(x)[:, :, None, :WIDTH], m.qkv(x)[:, None, :, WIDTH : 2 * WIDTH], dim=-1).softmax(-1) @ x, _qkv),
    _tokens("nn.MultiheadAttention with a bias for keys, zero attention and weights",
            lambda m, x: torch.cat(m.layer(x, x, x), -1),
            lambda: {"layer": nn.MultiheadAttention(WIDTH, 2, batch_first=True, add_bias_kv=True, add_zero_attn=True)}),
    Op("vmap", lambda m, x: torch.vmap(lambda v: m.layer(v.flatten()))(x),
       lambda: {"layer": nn.Linear(WIDTH * SIDE**2, 3)}),
    Op("many streams in one sum", lambda m, x: sum(F.relu(layer(x)) for layer in m.layers),
       lambda: {"layers": nn.ModuleList(nn.Conv2d(WIDTH, 3, 1) for _ in range(10))}),
    Op("a step function of the input, times a stream", lambda m, x: (x.mean(1, keepdim=True) > 0.2).to(x) * x),
    Op("hooks", lambda m, x: m.layer(x), _hooked),
    # modules used twice
    Op("a convolution called twice", lambda m, x: m.act(m.layer(m.act(m.layer(x)))),
       lambda: {"layer": nn.Conv2d(WIDTH, WIDTH, 1), "act": nn.ReLU()}),
    Op("convolution and BatchNorm called twice", lambda m, x: m.layer(m.layer(x)),
       lambda: {"layer": _bn(nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), nn.BatchNorm2d(WIDTH), nn.ReLU()))}),
    Op("recurrence, unrolled", lambda m, x: m.layer(x[:, :, 0, :4].transpose(1, 2))[0][:, -1],
       lambda: {"layer": nn.GRU(WIDTH, 3, batch_first=True)}),
    Op("recurrence both ways", lambda m, x: m.layer(x[:, :, 0, :3].transpose(1, 2))[0][:, -1],
       lambda: {"layer": nn.LSTM(WIDTH, 2, batch_first=True, bidirectional=True)}),
    Op("recurrence by a loop over a cell", _looped, lambda: {"layer": nn.RNNCell(WIDTH, 3)}),
)  # fmt: skip
