"""A command line that can be called, and a user's own model file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from spikezip.cli import app, screen

Spikezip = Callable[..., Any]


@pytest.fixture
def spikezip(monkeypatch, tmp_path) -> Spikezip:
    """Call ``spikezip ARGS`` in an empty working folder; what it printed is in ``.stdout`` and ``.stderr``."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.delenv("SPIKEZIP_TRACEBACK", raising=False)
    monkeypatch.setattr(screen.stdout, "width", 140)  # xdist and terminals set COLUMNS as they like
    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="session")
def model_file(tmp_path_factory) -> Path:
    """A user's own network for the digits, written without a thought of spikezip: functions, in-place ops, a branch."""
    path = tmp_path_factory.mktemp("user") / "mine.py"
    path.write_text(
        """
import torch
import torch.nn.functional as F
from torch import nn


class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.wide, self.narrow = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(16 * 4 * 4, 10)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)), inplace=True)
        x = F.max_pool2d(x, 2)
        x = torch.cat([self.wide(x).relu_(), torch.relu(self.narrow(x))], 1)
        return self.head(x.flatten(1))


def build():
    torch.manual_seed(0)
    return Mine()


def mixes():
    class Mixes(nn.Module):
        def forward(self, x):
            return (x - x.mean(0)).flatten(1)
    return Mixes()


def branches():
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x
    return Branches()


def broken():
    model = Mine()
    model.head.weight.data[0, 0] = float("nan")
    return model


def five():
    model = Mine()
    model.head = nn.Linear(16 * 4 * 4, 5)
    return model


def two():
    class Two(nn.Module):
        def forward(self, a, b):
            return (a + b).flatten(1)
    return Two(), (torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8))


def no_neuron():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), torch.zeros(2, 1, 8, 8)


def unlike():
    class Unlike(Mine):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.001] * 9 + [2e38]))

        def forward(self, x):
            return torch.tanh(super().forward(x) + self.mask)
    return Unlike()


def batch_last():
    class Turned(Mine):
        def forward(self, x):
            return super().forward(x).T
    torch.manual_seed(0)
    return Turned()


def maps():
    return nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 10, 1))


def flat():
    class Flat(Mine):
        def forward(self, x):
            return super().forward(x)[:, 0]
    return Flat()


def batch_statistics():
    model = Mine()
    model.norm = nn.BatchNorm2d(8, track_running_stats=False)
    return model
"""
    )
    return path
