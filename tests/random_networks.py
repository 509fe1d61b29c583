"""Small networks drawn at random: every way of wiring that a conversion has to get right."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

from spikezip.levels import Levels
from spikezip.quantize import Quantizer, calibrate, quantize

WIDTH = 4  #: channels between blocks


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.bn = nn.BatchNorm2d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class ResidualBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTH)
        self.conv2 = nn.Conv2d(WIDTH, WIDTH, 1)
        self.bn2 = nn.BatchNorm2d(WIDTH)
        self.relu = nn.ReLU(inplace=True)

    def shortcut(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        return self.relu(out)


class ProjectedBlock(ResidualBlock):
    def __init__(self):
        super().__init__()
        self.project = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1, bias=False), nn.BatchNorm2d(WIDTH))

    def shortcut(self, x: Tensor) -> Tensor:
        return self.project(x)


class SharedActivation(nn.Module):
    """One activation module, and one weight, used twice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 1)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(self.act(self.conv(x))))


class Concat(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(WIDTH, WIDTH - 1, 3, padding=1)
        self.join = nn.Conv2d(2 * WIDTH - 1, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.join(torch.cat([x, F.relu(self.wide(x))], 1)))


class Pools(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(F.max_pool2d(x, 3, 1, 1) - F.avg_pool2d(x, 3, 1, 1)))


class Branches(nn.Module):
    """Halves of the channels on ways of different length, multiplied and added."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(WIDTH // 2, WIDTH, 1)
        self.b = nn.Conv2d(WIDTH // 2, WIDTH, 3, padding=1, groups=2)
        self.c = nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        right = F.relu(self.b(right))
        return F.hardtanh(self.c(F.relu(self.a(left)) * right), -1.0, 1.0) + right


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(tokens)).reshape(x.shape[0], -1, 3, 2, WIDTH // 2).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return (tokens + self.out(mixed)).transpose(1, 2).reshape(x.shape)


class SqueezeExcitation(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(WIDTH, 2, 1)
        self.up = nn.Conv2d(2, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.silu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class Joins(nn.Module):
    """Codes of unlike signs and units joined and added for layers to read: pooled, enlarged, one above the other."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(WIDTH, 8, 1), nn.Conv2d(WIDTH, 8, 3, padding=1)
        self.pooled, self.wide, self.out = nn.Conv2d(16, 8, 2), nn.Conv2d(8, 8, 2, 2), nn.Conv2d(8, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.relu6(self.a(x)), F.hardtanh(self.b(x), -1.0, 1.0)
        y = F.interpolate(F.max_pool2d(torch.cat([a, b], 1), 2, 1), scale_factor=2)
        z = F.interpolate(torch.cat([F.max_pool2d(a, 3, 1, 1), b], 2), size=(6, 6))
        return self.out(F.relu(self.pooled(y)) + F.relu(self.wide(z)))


class Functions(nn.Module):
    """Smooth functions between layers along lines, over tokens and in volumes; and products of codes."""

    def __init__(self):
        super().__init__()
        self.line, self.tokens = nn.Conv1d(WIDTH, 8, 3, padding=1), nn.Linear(WIDTH, 8)
        self.volume, self.mix = nn.Conv3d(1, 8, (8, 3, 1), padding=(0, 1, 0)), nn.Conv2d(8, 8, 1)
        self.out = nn.Conv2d(8, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.line(x.flatten(2))) * torch.sigmoid(self.tokens(x.flatten(2).mT)).mT
        z = F.gelu(self.volume(y.unflatten(2, x.shape[2:]).unsqueeze(1))).squeeze(2)
        return torch.tanh(self.out(self.mix(z).softmax(-1)))


BLOCKS = {
    "chain": Chain,
    "residual": ResidualBlock,
    "residual with convolution": ProjectedBlock,
    "shared activation": SharedActivation,
    "concatenation": Concat,
    "pooling": Pools,
    "branches": Branches,
    "attention": Attention,
    "squeeze and excitation": SqueezeExcitation,
    "joins": Joins,
    "functions": Functions,
}


class Drawn(nn.Module):
    """Stem, blocks by name, one or two linear heads; weights from the seed alone."""

    input_shape = (2, 5, 5)

    def __init__(self, blocks: list[str], outputs: int = 1, seed: int = 0):
        super().__init__()
        self.drawn = (tuple(blocks), outputs, seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.stem = nn.Conv2d(2, WIDTH, 3)
            self.blocks = nn.ModuleList(BLOCKS[name]() for name in blocks)
            self.head = nn.Linear(WIDTH * 9, 3)
            self.side = nn.Linear(WIDTH, 2) if outputs == 2 else None

    def __repr__(self) -> str:  # what hypothesis prints
        return f"Drawn{self.drawn}"

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        scores = self.head(x.flatten(1))
        return scores if self.side is None else (scores, self.side(x.mean((2, 3))))


def quantize_everywhere(ann: fx.GraphModule, levels: int | Levels, images: Tensor) -> fx.GraphModule:
    """As ``quantize``, but :class:`Levels` with negative codes are every neuron's, behind ReLU too, where they make
    another function of it: a network to try engines with, not the model's."""
    qann = quantize(ann, levels)
    for module in qann.modules():
        if isinstance(module, Quantizer) and isinstance(levels, Levels):
            module.levels = levels
    calibrate(qann, images)
    return qann


def shuffle_statistics(model: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics and an affine map that matter, in place."""
    generator = torch.Generator().manual_seed(7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and module.running_mean is not None:
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)  # type: ignore[union-attr]
            if module.affine:
                module.weight.data.uniform_(-1.5, 1.5, generator=generator)
                module.bias.data.normal_(generator=generator)
    return model


def networks(max_blocks: int = 3) -> st.SearchStrategy[Drawn]:
    """Networks of one to ``max_blocks`` blocks."""
    names = st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=max_blocks)
    return st.builds(Drawn, names, st.integers(1, 2), st.integers(0, 1000))
