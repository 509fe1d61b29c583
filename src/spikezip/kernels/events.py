"""Sums of 8-bit weights times codes, spike by spike: each row from the row before it and what changed in between.

A row then costs what changed in it, where a dense kernel costs the same for one spike as for thousands. Which of the
two is cheaper depends on layer and processor: both are timed on the first rows that a layer meets, and from then on
each row goes where it is cheaper. The sums are the same bits.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
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

_off: ContextVar[bool] = ContextVar("dense_synapses", default=False)

Dense = Callable[[Tensor], Tensor]  #: sums of some rows, computed one product after the other


def dense_synapses() -> AbstractContextManager[None]:
    """Within: every row is computed densely, to see what spikes save. Results are the same bits."""
    return switched_on(_off)


def sums(codes: Rows, weight: Tensor, geometry: Any, packed: dict[Any, Any], dense: Dense) -> Tensor | None:
    """The sums of each row, ``[R, out, ...]`` float32; None if none of them is cheaper so.

    Args:
        codes: as bytes.
        weight: ``[out, in, ...]`` int8.
        geometry: stride, padding, dilation and groups of a convolution; None for a linear layer.
        packed: keeps packed weights, and what was found by timing.
        dense: computes rows in which too much changed.
    """
    library = native.library(build=False)
    if _off.get() or library is None or not hasattr(library, "spikezip_events"):
        return None
    if codes.top > _MOST or (geometry and geometry[2:] != ([1, 1], 1)):
        return None
    shape = _shape(codes.rows, weight, geometry)
    if shape[2] % 8 or codes.rows.shape[0] * shape[3] * shape[4] * weight.numel() < _WORTH:
        return None
    layout = torch.channels_last if geometry else torch.contiguous_format
    rows = codes.rows.contiguous(memory_format=layout)
    found = _changes(library, rows, codes)
    if found is None:
        return None
    if "events" not in packed:
        packed["events"] = pack(weight)
    size = (rows.shape[0], weight.shape[0], *shape[3:5]) if geometry else (*rows.shape[:-1], weight.shape[0])
    out = torch.empty(size, dtype=torch.float32, memory_format=layout)

    def add(found: Tensor) -> None:
        order, before, _, most = found.contiguous()
        library.spikezip_events(
            ctypes.addressof(shape), packed["events"].data_ptr(), block_of(weight), rows.data_ptr(), codes.zero,
            order.data_ptr(), before.data_ptr(), most.data_ptr(), len(order), out.data_ptr(),
        )  # fmt: skip

    limit = ("limit", torch.get_num_threads())
    if limit not in packed:
        first = found[:, :_TRIED]
        some = gather(rows, first[0])
        seconds = min(_seconds(lambda: dense(some)) for _ in range(2))
        each = min(_seconds(lambda: add(first)) for _ in range(2)) / max(int(first[2].sum()), 1)
        packed[limit] = seconds / len(some) / each
    sparse = found[2] < packed[limit]
    if not sparse.any():
        return None
    if not sparse.all():
        which = found[0, ~sparse]
        out.index_copy_(0, which, dense(gather(rows, which)))
        found = found[:, sparse]
    add(found)
    return out


def block_of(weight: Tensor) -> int:
    """How many output channels the kernel takes at a time."""
    return next((block for block in _BLOCKS if block >= weight.shape[0]), _BLOCKS[-1])


def pack(weight: Tensor) -> Tensor:
    """Weights ``[out, in, ...]`` as the kernel reads them: plus 128, and those of a block of outputs together, in the
    order in which interleaving two registers of them leaves sums in the order of the outputs."""
    high, wide = weight.shape[2:] or (1, 1)
    outputs, inputs = weight.shape[:2]
    block = block_of(weight)
    blocks = -(-outputs // block)
    padded = torch.zeros((blocks * block, inputs, high, wide), dtype=torch.int16)
    padded[:outputs] = weight.reshape(outputs, inputs, high, wide)
    # block, register, half of the sums, lane, byte of the half lane, input, line and column of the window
    lanes = min(block // 16, 2)
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
    """For each row in the order of time: its place, that of the row before it (-1: none), how many neurons differ from
    there, and by how much at most, ``[4, R]``. None if images share rows, or some are nobody's."""
    map = codes.map.contiguous()
    found = torch.empty((4, map.numel()), dtype=torch.int64)
    count = library.spikezip_changes(
        rows.data_ptr(), map.data_ptr(), *map.shape, rows[0].numel(), codes.zero, *(part.data_ptr() for part in found)
    )
    return found[:, :count] if count == rows.shape[0] else None


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.thread_time()  # not the clock on the wall: other processes must not decide
    call()
    return time.thread_time() - begin
