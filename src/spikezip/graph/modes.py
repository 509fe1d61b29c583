"""Settings of torch that are the caller's own, and say nothing of networks: kept from what the library makes.

Where the caller's own code runs too (a model that is trained, a data set, a loss), it keeps its default device, and
what the library makes there names the CPU itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def default_device() -> Iterator[None]:
    """Within: new tensors are the CPU's, whatever ``torch.set_default_device`` says; networks and inputs stay."""
    if torch.get_default_device().type == "cpu":
        yield
    else:
        with torch.device("cpu"):
            yield


@contextmanager
def building() -> Iterator[None]:
    """Within: what is made of networks is as it would be elsewhere, whatever the default device is, and can be trained,
    under ``torch.inference_mode()`` too. As a decorator it is a frame of its own, which ``stacklevel`` counts."""
    with default_device():
        if not torch.is_inference_mode_enabled():
            yield
        else:
            with torch.inference_mode(False):
                yield
