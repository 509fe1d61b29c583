"""Sums of 8-bit weights times codes, spike by spike: each row from the row before it and what changed in between.

A row then costs what changed in it, where a dense kernel costs the same for one spike as for thousands. Which of the
two is cheaper depends on layer and processor: both are timed on rows that a layer first meets. From then on each row
goes where it is cheaper, if all that is saved so is more than it costs to look for changes and to part the rows; and
what was expected is held against what it took, in every call. The sums are the same bits.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spikezip.kernels import native
from spikezip.kernels.alone import switched_on
from spikezip.kernels.rows import Rows, gather

_BLOCKS = (16, 32, 64)  #: output channels that the kernel can take at a time
_MOST = 64  #: levels between two rows that its products hold
_WORTH = 1 << 22  #: multiplications; below, looking for what changed is not worth it
_TRIED = 8  #: rows that are timed
_TOGETHER = 32  #: rows that the dense kernel is timed on beside these: it may be faster on more
_DEARER = 2.0  #: times what was expected; a call that took longer was disturbed
_FIRST = 3  #: calls computed densely before the choice: trials alone may have been disturbed
_REST = 16  #: calls, at most, until a layer for which it did not pay is looked at again

_off: ContextVar[bool] = ContextVar("dense_synapses", default=False)

Dense = Callable[[Tensor], Tensor]  #: sums of some rows, computed one product after the other


@dataclass
class Costs:
    """Seconds that a layer's rows cost; and how the looking went.

    Attributes:
        dense: of a row, by the dense kernel.
        apart: of a row computed densely with few others: what it costs more, and bringing it together with the rest.
        looked: of a row, to find what changed.
        fixed: of a row, by the event-driven kernel.
        change: of a change, by that kernel.
        dearer: times what these make of a call, it took: an average.
        misses: how many calls in a row it would not have paid.
        rest: how many calls are still to be computed densely without a look.
    """

    dense: float
    apart: float
    looked: float
    fixed: float
    change: float
    dearer: float = 1.0
    misses: int = 0
    rest: int = 0

    def sparse(self, changed: list[int]) -> tuple[list[bool], float] | None:
        """Of rows with so many changes, which to compute from these, and what the call should take; None if all are
        cheaper computed densely."""
        each = [self.fixed + self.change * count for count in changed]
        cheaper = [cost * self.dearer < self.dense for cost in each]
        costs = [cost if way else self.dense + self.apart for cost, way in zip(each, cheaper, strict=True)]
        expected = sum(costs) + self.looked * len(changed)
        pays = any(cheaper) and expected * self.dearer < self.dense * len(changed)
        self.misses = 0 if pays else self.misses + 1
        self.rest = 0 if pays else min(2**self.misses, _REST)
        return (cheaper, expected) if pays else None

    def took(self, seconds: float, expected: float) -> None:
        """Learn from a call."""
        if expected > 0:  # a coarse clock may see nothing pass
            self.dearer = (self.dearer + min(seconds / expected, _DEARER)) / 2

    def took_densely(self, seconds: float, rows: int) -> None:
        """Learn from a call in which all rows were computed densely."""
        self.dense = (self.dense + min(seconds / rows, _DEARER * self.dense)) / 2


def dense_synapses() -> AbstractContextManager[None]:
    """Within: every row is computed densely, to see what spikes save. Results are the same bits."""
    return switched_on(_off)


def sums(codes: Rows, weight: Tensor, geometry: Any, packed: dict[Any, Any], dense: Dense) -> Tensor:
    """The sums of each row, ``[R, out, ...]`` float32.

    Args:
        codes: as bytes.
        weight: ``[out, in, ...]`` int8.
        geometry: stride, padding, dilation and groups of a convolution; None for a linear layer.
        packed: keeps packed weights, and what was found by timing.
        dense: computes rows in which too much changed.
    """
    library = native.library(build=False)
    if _off.get() or library is None or not hasattr(library, "spikezip_events"):
        return dense(codes.rows)
    if codes.top > _MOST or (geometry and geometry[2:] != ([1, 1], 1)):
        return dense(codes.rows)
    shape = _shape(codes.rows, weight, geometry)
    if shape[2] % 8 or codes.rows.shape[0] * shape[3] * shape[4] * weight.numel() < _WORTH:
        return dense(codes.rows)
    key = ("costs", torch.get_num_threads())
    costs: Costs | None = packed.get(key)
    if costs is not None and costs.rest > 0:  # threads share it, and may count it below 0
        costs.rest -= 1
        return _densely(costs, codes.rows, dense)
    layout = torch.channels_last if geometry else torch.contiguous_format
    began = time.thread_time()
    rows = codes.rows.contiguous(memory_format=layout)
    found = _changes(library, rows, codes)
    looked = time.thread_time() - began
    if found is None:
        return dense(rows)
    if "events" not in packed:
        packed["events"] = pack(weight, library.spikezip_lanes())
    size = (rows.shape[0], weight.shape[0], *shape[3:5]) if geometry else (*rows.shape[:-1], weight.shape[0])
    out = torch.empty(size, dtype=torch.float32, memory_format=layout)

    def add(found: Tensor) -> None:
        library.spikezip_events(
            ctypes.addressof(shape), packed["events"].data_ptr(), block_of(weight), rows.data_ptr(), codes.zero,
            found.data_ptr(), found.stride(0), found.shape[1], out.data_ptr(),
        )  # fmt: skip

    if costs is None:
        packed[key] = _costs(found, rows, out, add, dense, looked)
        return _densely(packed[key], rows, dense)
    choice = costs.sparse(found[3].tolist())
    if choice is None:
        return _densely(costs, rows, dense)
    cheaper, expected = choice
    if not all(cheaper):
        by_change, others = ([i for i, which in enumerate(cheaper) if which is way] for way in (True, False))
        which = found[0, others]
        out.index_copy_(0, which, dense(gather(rows, which)))
        found = found.index_select(1, torch.tensor(by_change))
    add(found)
    costs.took(time.thread_time() - began, expected)
    return out


def _densely(costs: Costs, rows: Tensor, dense: Dense) -> Tensor:
    began = time.thread_time()
    out = dense(rows)
    costs.took_densely(time.thread_time() - began, rows.shape[0])
    return out


def _costs(
    found: Tensor, rows: Tensor, out: Tensor, add: Callable[[Tensor], None], dense: Dense, looked: float
) -> Costs:
    """Both ways timed on a few rows: those in which most changed, and those in which least did."""
    by_changes = found[3].argsort(descending=True)
    most, least = (found[:, some].contiguous() for some in (by_changes[:_TRIED], by_changes[-_TRIED:]))
    some = gather(rows, most[0])
    sums = dense(some)
    count = len(some)
    slow, fast = (min(_seconds(lambda part=part: add(part)) for _ in range(2)) for part in (most, least))
    more = int(most[3].sum() - least[3].sum())
    change = (slow - fast) / more if more > 0 and slow > fast else slow / max(int(most[3].sum()), 1)
    together = rows[:_TOGETHER]
    whole = min(_seconds(lambda: dense(together)) for _ in range(2)) / len(together)
    part = min(_seconds(lambda: dense(some)) for _ in range(2)) / count
    copied = min(_seconds(lambda: out.index_copy_(0, most[0], sums)) for _ in range(2)) / count
    return Costs(
        dense=whole,
        apart=copied + max(part - whole, 0.0),
        looked=looked / found.shape[1],
        fixed=max(fast - change * int(least[3].sum()), 0.0) / count,
        change=change,
        rest=_FIRST - 1,
    )


def block_of(weight: Tensor) -> int:
    """How many output channels the kernel takes at a time."""
    return next((block for block in _BLOCKS if block >= weight.shape[0]), _BLOCKS[-1])


def pack(weight: Tensor, lanes: int) -> Tensor:
    """Weights ``[out, in, ...]`` as the kernel reads them: plus 128, and those of a block of outputs together, in the
    order in which interleaving two registers of them, of so many lanes, leaves sums in the order of the outputs."""
    high, wide = weight.shape[2:] or (1, 1)
    outputs, inputs = weight.shape[:2]
    block = block_of(weight)
    blocks = -(-outputs // block)
    padded = torch.zeros((blocks * block, inputs, high, wide), dtype=torch.int16)
    padded[:outputs] = weight.reshape(outputs, inputs, high, wide)
    # block, register, half of the sums, lane, byte of the half lane, input, line and column of the window
    lanes = min(block // 16, lanes)
    apart = (padded + 128).to(torch.uint8).reshape(blocks, -1, 2, lanes, 8, inputs, high, wide)
    return apart.permute(0, 6, 7, 5, 1, 3, 2, 4).contiguous()


def _shape(rows: Tensor, weight: Tensor, geometry: Any) -> Any:
    """What the kernel has to know: sizes of codes, sums and window, stride and padding."""
    if geometry is None:  # a linear layer is a window of one place
        places = rows[0].numel() // rows.shape[-1]
        sizes = (places, 1, rows.shape[-1], places, 1, weight.shape[0], 1, 1, 1, 1, 0, 0)
    else:
        (down, right), (top, left), *_ = geometry
        (inputs, high, wide), (outputs, _, kernel_high, kernel_wide) = rows.shape[1:], weight.shape
        out_high, out_wide = (high + 2 * top - kernel_high) // down + 1, (wide + 2 * left - kernel_wide) // right + 1
        sizes = (high, wide, inputs, out_high, out_wide, outputs, kernel_high, kernel_wide, down, right, top, left)
    return (ctypes.c_int64 * len(sizes))(*sizes)


def _changes(library: Any, rows: Tensor, codes: Rows) -> Tensor | None:
    """For each row in the order of time: its place, that of the row before it (-1: none), by how much neurons differ
    from there at most, and how many do, ``[4, R]``. None if images share rows, some are nobody's, or rows do not lie
    along the first dimension."""
    map = codes.map.contiguous()
    found = torch.empty((4, map.numel()), dtype=torch.int64)
    held = rows.shape[0]
    count = library.spikezip_changes(
        rows.data_ptr(), held, map.data_ptr(), *map.shape, rows.numel() // held, codes.zero, found.data_ptr()
    )
    return found[:, :count] if count == held else None


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.thread_time()  # not the clock on the wall: other processes must not decide
    call()
    return time.thread_time() - begin
