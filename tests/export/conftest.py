"""A network, its bundle, and the bundle taken apart."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

# The networks are shared by several test files of this folder.
sys.path.insert(0, str(Path(__file__).parent))

from bundle_nets import Parts, SmallNet, apart, convert

from spikezip.export import save_bundle
from spikezip.spike import SpikingNetwork


@pytest.fixture(scope="session")
def images() -> Tensor:
    """Inputs of ``SmallNet``."""
    return torch.rand((12, 1, 4, 4), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def small(images: Tensor) -> SpikingNetwork:
    """``SmallNet`` as an SNN; shared by tests, which leave it as it is."""
    torch.manual_seed(0)
    return convert(SmallNet(), images)


@pytest.fixture(scope="session")
def good(small: SpikingNetwork, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a good bundle."""
    return save_bundle(small, tmp_path_factory.mktemp("good") / "good.spikezip").read_bytes()


@pytest.fixture
def take_apart(good: bytes, tmp_path: Path) -> Callable[[], Parts]:
    """Takes the good bundle apart, anew at each call."""
    source = tmp_path / "good.spikezip"
    source.write_bytes(good)

    return lambda: apart(source)
