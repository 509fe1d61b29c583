"""Small networks take the ways that only large ones are worth."""

from __future__ import annotations

import pytest

from spikezip.kernels import events


def add_up_spike_by_spike(patch: pytest.MonkeyPatch) -> None:
    """However small the work: groups of rows in which less changed than in most."""
    patch.setattr(events, "_WORTH", 0)
    patch.setattr(
        events,
        "_costs",
        lambda pending, *_: events.Costs(float(pending.groups.work.sum() / pending.groups.rows.sum()), 0, 0, 0, 1),
    )
