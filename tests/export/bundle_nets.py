"""Networks to save, and a bundle taken apart so that it can be put together wrongly."""

from __future__ import annotations

import hashlib
import json
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from spikezip.errors import BundleError
from spikezip.export import load_bundle
from spikezip.graph import capture, network
from spikezip.morph import Morph, morph
from spikezip.quantize import quantize
from spikezip.spike import SpikingNetwork, spike

KEY = "spikezip"


class SmallNet(nn.Module):
    """A residual, a max-pool, BatchNorm, a split, an index, a size from the batch, tied weights, two outputs."""

    turn: Tensor

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv3 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv3.weight = self.conv2.weight
        self.fc = nn.Linear(16, 3)
        self.register_buffer("turn", torch.tensor([3, 1, 2, 0]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = torch.relu(self.bn(self.conv1(x)))
        b = torch.relu(self.conv2(a) + a)
        b = torch.relu(self.conv3(b))
        left, right = nn.functional.max_pool2d(b, 2).chunk(2, 1)
        s = torch.cat([right, left], 1)[:, self.turn]
        windows = s.reshape(x.shape[0] * 4, 4)
        return self.fc(windows.reshape(x.shape[0], 16)), s.mean((2, 3))


def convert(model: nn.Module, images: Tensor, levels: int = 4) -> SpikingNetwork:
    """A calibrated SNN of a model."""
    return spike(quantize(morph(capture(model.eval(), images[:1]), Morph()), levels, images))


@dataclass
class Parts:
    """A bundle taken apart: the JSON document of its header, and its tensors."""

    document: Any
    tensors: dict[str, Tensor]

    def write(self, path: Path, *, sign: bool = True) -> None:
        """Put it together; with ``sign`` the header states its own SHA-256, as one who forges a bundle would see to."""
        if sign and isinstance(self.document, dict):
            rest = {key: value for key, value in self.document.items() if key != "sha256"}
            text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
            self.document["sha256"] = hashlib.sha256(text.encode()).hexdigest()
        save_file(self.tensors, path, {KEY: json.dumps(self.document)})

    def node(self, target: str) -> Any:
        """The first node of a target."""
        return next(row for row in self.document["nodes"] if row["target"] == target)


def apart(path: Path) -> Parts:
    """A bundle, taken apart."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
        return Parts(json.loads(file.metadata()[KEY]), tensors)


def refused(path: Path, match: str) -> None:
    """Loading gives a BundleError that tells of ``match``, the file and what to do; soon, and without much memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()
    with pytest.raises(BundleError, match=match) as caught:
        load_bundle(path)
    assert time.process_time() - begun < 10
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 300, f"loading took {grown:.0f} MB"
    message = str(caught.value)
    assert repr(str(path)) in message
    assert len(message) < 2000
    assert "upgrade" in message or "Get the file anew" in message, "what to do next"


def loads_or_is_refused(path: Path) -> bool:
    """True if a network came out; a BundleError is the one error that may."""
    try:
        loaded = load_bundle(path)
    except BundleError:
        return False
    assert isinstance(loaded, SpikingNetwork | fx.GraphModule)
    assert network.info(loaded.graph if isinstance(loaded, SpikingNetwork) else loaded)
    return True
