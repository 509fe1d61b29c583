"""Sums over images, of all processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spikezip.errors import RecipeError

if TYPE_CHECKING:
    from accelerate import Accelerator


class Sums:
    """Sums of losses and logged numbers; they stay on the device until someone asks, so that no step waits.

    Invariant: after :meth:`means`, all processes hold the same sums.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        self._here: dict[str, Tensor] = {}
        self._images = 0
        self._all: dict[str, float] = {}

    def add(self, loss: Tensor, numbers: dict[str, Tensor], images: int) -> None:
        """Add one batch: means over ``images``. RecipeError if a number has a name that is taken."""
        if taken := sorted({"loss", "images"} & numbers.keys()):
            raise RecipeError(f"An objective logs {taken[0]!r}, which training counts itself. Give it another name.")
        for name, value in {"loss": loss, **numbers}.items():
            part = torch.as_tensor(value, device=self._accelerator.device).detach().float() * images
            self._here[name] = self._here[name] + part if name in self._here else part
        self._images += images

    def means(self) -> tuple[float, dict[str, float], int]:
        """Mean loss, mean numbers and count of images since :meth:`clear`, over all processes (which all must ask)."""
        names = sorted(self._all.keys() - {"images"} | self._here.keys())
        device = self._accelerator.device
        nothing = torch.zeros((), device=device)
        here = torch.stack([self._here.get(n, nothing) for n in names] + [nothing + self._images])
        total = self._accelerator.reduce(here, "sum")
        for name, value in zip([*names, "images"], total.tolist(), strict=True):  # type: ignore[union-attr]
            self._all[name] = self._all.get(name, 0.0) + value
        self._here, self._images = {}, 0
        images = self._all["images"]
        means = {name: self._all[name] / images for name in names}
        loss = means.pop("loss")
        return loss, means, round(images)

    def clear(self) -> None:
        """Begin anew."""
        self._here, self._images, self._all = {}, 0, {}

    def as_json(self) -> dict[str, Any]:
        """The sums as of the last :meth:`means`."""
        return dict(self._all)

    def restore(self, sums: dict[str, Any]) -> None:
        """Go on from sums of :meth:`as_json`."""
        self.clear()
        self._all = dict(sums)
