"""Sums of 8-bit weights times codes, spike by spike: rows from the row before them and what changed since.

A few rows that follow one another are taken together, and cost what the neurons that change among them do; a dense
kernel costs the same for one spike as for thousands. Which of the two is cheaper depends on layer and processor: both
are timed on rows that a layer first meets. From then on each group of rows goes where it is cheaper, if all that is
saved so is more than it costs to look for changes and to part the rows; and what was expected is held against what it
took, in every call. The sums are the same bits.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from spikezip.kernels import native
from spikezip.kernels.alone import switched_on
from spikezip.kernels.rows import Rows, gather

_BLOCKS = (16, 32, 64)  #: output channels that the kernel can take at a time
_MOST = 64  #: levels that its products hold
_WORTH = 1 << 22  #: multiplications; below, looking for what changed is not worth it
_TRIED = 2  #: groups of rows that are timed
_TOGETHER = 32  #: rows that the dense kernel is timed on beside these: it may be faster on more
_LONGER_AGAIN = 1.1  #: times what calls before took, at most: a call that took longer may have been disturbed
_FIRST = 3  #: calls computed densely before the choice: trials alone may have been disturbed
_TRIALS = 2  #: choices that prefer changes, even if they seem to take longer: few rows say little of what many take
_LONGER = 1.5  #: so many times as long as densely, at most
_REST = 16  #: calls, at most, until a layer for which it did not pay is looked at again

_off: ContextVar[bool] = ContextVar("dense_synapses", default=False)

Dense = Callable[[Tensor], Tensor]  #: sums of some rows, computed one product after the other


@dataclass(frozen=True)
class Groups:
    """Rows that follow one another, a few together.

    Attributes:
        order: the rows in the order of time, image by image, ``[R]`` int64.
        first: where each group begins in that order.
        rows: how many each has.
        before: the row before each that it is compared with; -1 where it is compared with nothing.
        work: what their sums cost, about: how many neurons differ, times what one costs among so many rows.
    """

    order: Tensor
    first: Tensor
    rows: Tensor
    before: Tensor
    work: Tensor

    def some(self, which: list[int] | Tensor) -> Groups:
        """These groups of the same rows."""
        which = torch.as_tensor(which)
        return Groups(self.order, *(v[which] for v in (self.first, self.rows, self.before, self.work)))

    def listed(self) -> Tensor:
        """As the kernels read them."""
        return torch.stack([self.first, self.rows, self.before])

    def places(self) -> Tensor:
        """The rows of all groups."""
        each = zip(self.first.tolist(), self.rows.tolist(), strict=True)
        return torch.cat([self.order[first : first + count] for first, count in each])


@dataclass
class Costs:
    """Seconds that a layer's rows cost; and how the looking went.

    Attributes:
        dense: of a row, by the dense kernel.
        apart: of a row computed densely with few others: what it costs more, and bringing it together with the rest.
        looked: of a row, to find what changed.
        fixed: of a group, by the event-driven kernel.
        change: of its work, by that kernel.
        dearer: times what these make of a call, it takes.
        misses: how many calls in a row it would not have paid.
        rest: how many calls are still to be computed densely without a look.
        trials: how many choices still prefer changes.
    """

    dense: float
    apart: float
    looked: float
    fixed: float
    change: float
    dearer: float = 1.0
    misses: int = 0
    rest: int = 0
    trials: int = 0

    def sparse(self, rows: list[int], work: list[int]) -> tuple[list[bool], float] | None:
        """Of groups with so many rows and so much work, which to compute by their changes, and what the call should
        take; None if all are cheaper computed densely."""
        each = [self.fixed + self.change * some for some in work]
        most = self.dense * (_LONGER if self.trials > 0 else 1.0) / self.dearer
        cheaper = [cost < most * count for cost, count in zip(each, rows, strict=True)]
        apart = self.dense + self.apart
        costs = [cost if way else apart * count for cost, way, count in zip(each, cheaper, rows, strict=True)]
        expected = sum(costs) + self.looked * sum(rows)
        pays = any(cheaper) and expected < most * sum(rows)
        self.trials -= 1
        self.misses = 0 if pays else self.misses + 1
        self.rest = 0 if pays else min(2**self.misses, _REST)
        return (cheaper, expected) if pays else None

    def took(self, seconds: float, expected: float) -> None:
        """Learn from a call."""
        if expected > 0:  # a coarse clock may see nothing pass
            self.dearer = min(seconds / expected, _LONGER_AGAIN * self.dearer)

    def took_densely(self, seconds: float, rows: int) -> None:
        """Learn from a call in which all rows were computed densely."""
        self.dense = min(seconds / rows, _LONGER_AGAIN * self.dense)


def dense_synapses() -> AbstractContextManager[None]:
    """Within: every row is computed densely, to see what spikes save. Results are the same bits."""
    return switched_on(_off)


@dataclass(frozen=True)
class Pending:
    """Sums that the event-driven kernel is still to compute: at once, or with the scan of the neurons behind.

    Attributes:
        library: the kernels.
        shape: what they have to know of the layer.
        weight: packed for them.
        block: output channels that they take at a time.
        codes: whose sums.
        groups: the rows to compute so.
        size: of the sums, ``[R, out, ...]``.
        layout: of them.
        given: the other rows: which, and their sums.
        costs: learns what was spent.
        spent: seconds, up to now.
        expected: seconds, in all.
    """

    library: Any
    shape: Any
    weight: Tensor
    block: int
    codes: Rows
    groups: Groups
    size: tuple[int, ...]
    layout: torch.memory_format
    given: tuple[Tensor, Tensor] | None = None
    costs: Costs | None = None
    spent: float = 0.0
    expected: float = 0.0

    def sums(self) -> Tensor:
        """All sums."""
        began = time.thread_time()
        out = self.room()
        if self.given is not None:
            out.index_copy_(0, *self.given)
        self.add(self.groups, out)
        self._took(time.thread_time() - began)
        return out

    @property
    def may_scan(self) -> bool:
        """Whether there is a kernel that scans neurons too."""
        return hasattr(self.library, "spikezip_events_and_scan")

    def room(self, device: str = "cpu") -> Tensor:
        """A tensor for the sums, as the kernels write them."""
        return torch.empty(self.size, dtype=torch.float32, memory_format=self.layout, device=device)

    def add(self, some: Groups, out: Tensor) -> None:
        """Compute some groups."""
        groups = some.listed()
        self.library.spikezip_events(*self._operands(groups), out.data_ptr())

    def scan(self, layer: int, term: int) -> int:
        """Compute all that is left, and scan the neurons behind, which read it as one of their terms.

        Args:
            layer: address of the layer, as the kernels read it.
            term: of the term.

        Returns:
            How many rows of codes there are.
        """
        began = time.thread_time()
        given = torch.zeros(self.size[0], dtype=torch.int64)
        if self.given is not None:
            which, values = self.given
            values = values.contiguous(memory_format=self.layout)
            given[which] = values.data_ptr() + values[0].numel() * values.element_size() * torch.arange(len(which))
        share, groups = ctypes.c_double(), self.groups.listed()
        made = self.library.spikezip_events_and_scan(
            *self._operands(groups), given.data_ptr(), layer, term, ctypes.addressof(share)
        )
        self._took((time.thread_time() - began) * (1 - share.value))
        return made

    def _took(self, seconds: float) -> None:
        if self.costs is not None:
            self.costs.took(self.spent + seconds, self.expected)

    def _operands(self, groups: Tensor) -> tuple[Any, ...]:
        return (
            ctypes.addressof(self.shape), self.weight.data_ptr(), self.block, self.codes.rows.data_ptr(),
            self.codes.zero, self.groups.order.data_ptr(), groups.data_ptr(), groups.shape[1],
        )  # fmt: skip


def begin(codes: Rows, weight: Tensor, geometry: Any, packed: dict[Any, Any], dense: Dense) -> Tensor | Pending:
    """The sums of each row, ``[R, out, ...]`` float32; or, where spikes are added up, what is still to compute them.

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
    codes = codes.with_rows(codes.rows.contiguous(memory_format=layout))
    found = _changes(library, shape, codes)
    looked = time.thread_time() - began
    if found is None:
        return dense(codes.rows)
    if "events" not in packed:
        packed["events"] = pack(weight, library.spikezip_together())
    held = codes.rows.shape
    size = (held[0], weight.shape[0], *shape[3:5]) if geometry else (*held[:-1], weight.shape[0])
    pending = Pending(library, shape, packed["events"], block_of(weight), codes, found, size, layout)
    if costs is None:
        packed[key] = _costs(pending, dense, looked)
        return _densely(packed[key], codes.rows, dense)
    choice = costs.sparse(found.rows.tolist(), found.work.tolist())
    if choice is None:
        return _densely(costs, codes.rows, dense)
    cheaper, expected = choice
    given = None
    if not all(cheaper):
        by_change, others = ([i for i, which in enumerate(cheaper) if which is way] for way in (True, False))
        which = found.some(others).places()
        given = which, dense(gather(codes.rows, which))
        found = found.some(by_change)
    return replace(pending, groups=found, given=given, costs=costs, spent=time.thread_time() - began, expected=expected)


def _densely(costs: Costs, rows: Tensor, dense: Dense) -> Tensor:
    began = time.thread_time()
    out = dense(rows)
    costs.took_densely(time.thread_time() - began, rows.shape[0])
    return out


def _costs(pending: Pending, dense: Dense, looked: float) -> Costs:
    """Both ways timed on a few groups of rows: those in which most changes, and those in which least does."""
    found, rows, out = pending.groups, pending.codes.rows, pending.room()
    by_work = (found.work / found.rows).argsort(descending=True)
    most, least = (found.some(some) for some in (by_work[:_TRIED], by_work[-_TRIED:]))
    which = most.places()
    some = gather(rows, which)
    sums = dense(some)
    slow, fast = (min(_seconds(lambda part=part: pending.add(part, out)) for _ in range(2)) for part in (most, least))
    work, rest = int(most.work.sum()), int(least.work.sum())
    count, groups, others = len(which), len(most.rows), len(least.rows)
    more, longer = work - rest * groups / others, slow - fast * groups / others
    apart_enough = more > work / 2 and longer > 0
    change = longer / more if apart_enough else slow / max(work, 1)
    together = rows[:_TOGETHER]
    whole = min(_seconds(lambda: dense(together)) for _ in range(2)) / len(together)
    part = min(_seconds(lambda: dense(some)) for _ in range(2)) / count
    copied = min(_seconds(lambda: out.index_copy_(0, which, sums)) for _ in range(2)) / count
    return Costs(
        dense=whole,
        apart=copied + max(part - whole, 0.0),
        looked=looked / len(found.order),
        fixed=max(fast - change * rest, 0.0) / others,
        change=change,
        rest=_FIRST - 1,
        trials=_TRIALS,
    )


def block_of(weight: Tensor) -> int:
    """How many output channels the kernel takes at a time."""
    return next((block for block in _BLOCKS if block >= weight.shape[0]), _BLOCKS[-1])


def pack(weight: Tensor, together: int) -> Tensor:
    """Weights ``[out, in, ...]`` as the kernel reads them: those of a block of outputs together, in the order in which
    interleaving those of so many neurons leaves sums in the order of the outputs. As bytes, plus 128."""
    high, wide = weight.shape[2:] or (1, 1)
    outputs, inputs = weight.shape[:2]
    block = block_of(weight)
    blocks = -(-outputs // block)
    padded = torch.zeros((blocks * block, inputs, high, wide), dtype=torch.int16)
    padded[:outputs] = weight.reshape(outputs, inputs, high, wide)
    padded = (padded + 128).to(torch.uint8)
    lanes = min(block // 16, together)
    # block, register, part of its lanes of 128 bits, lane, byte of the part, input, line and column of the window
    apart = padded.reshape(blocks, -1, together, lanes, 16 // together, inputs, high, wide)
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


def _changes(library: Any, shape: Any, codes: Rows) -> Groups | None:
    """The rows in the order of time, in groups. None if images share rows, some are nobody's, or rows do not lie along
    the first dimension."""
    map = codes.map.contiguous()
    found = torch.empty((5, map.numel()), dtype=torch.int64)
    held = codes.rows.shape[0]
    count = library.spikezip_changes(
        ctypes.addressof(shape), codes.rows.data_ptr(), held, map.data_ptr(), *map.shape, codes.zero,
        found.data_ptr(), found[1:].data_ptr(),
    )  # fmt: skip
    return Groups(found[0, :held], *found[1:, :count]) if count >= 0 else None


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.thread_time()  # not the clock on the wall: other processes must not decide
    call()
    return time.thread_time() - begin
