"""The scan as a Triton kernel: tracers stay in registers over all steps, bytes come in and go out.

One program runs some neurons of one image through all steps. It reads the drive (of one or two streams, as sums still
to be scaled, codes or floats), scales it and adds the bias, quantizes, moves the tracer, writes it as a byte and counts
spikes, without anything in between reaching memory. Each operation rounds as torch's does: no contraction of
``a*b + c``, division to nearest.

Triton ships with torch's CUDA builds; without it this module can be imported and not used. With ``TRITON_INTERPRET=1``
set before the import it runs on the CPU, for tests.
"""
# What kernels hold is typed by Triton's compiler.
# pyright: reportOperatorIssue=false, reportCallIssue=false

import math
from typing import Any

import torch
from torch import Tensor

from spikezip.kernels.native import Found
from spikezip.kernels.rows import Rows, every_row, gather, layout_of
from spikezip.kernels.transfers import to_device
from spikezip.levels import Levels

try:
    import triton  # pyright: ignore[reportMissingImports]
    import triton.language as tl  # pyright: ignore[reportMissingImports]
except ImportError:
    triton = None

_BLOCK = 1024  #: neurons of a program
_TYPES = (torch.float32, torch.float64, torch.uint8)

if triton is not None:

    @triton.jit
    def _term(value, scale, bias, grid, zero, FLOAT: tl.constexpr, SCALED: tl.constexpr, BIASED: tl.constexpr,
              ROUNDED: tl.constexpr):  # fmt: skip
        """(value - zero) * scale + bias, or the value rounded to fixed point."""
        if ROUNDED:  # a factor, steps to 1, the most steps from 0, 1 / steps
            limit = tl.load(grid + 2)
            value = tl.floor(value * tl.load(grid) * tl.load(grid + 1) + 0.5)
            value = tl.minimum(tl.maximum(value, -limit), limit) * tl.load(grid + 3)
        value = value.to(FLOAT) - zero
        if SCALED:
            value = value * scale
        if BIASED:
            value = value + bias
        return value

    # No specialization: an argument of 1 would become a constant without a type, and each size another compilation.
    @triton.jit(do_not_specialize=["x_zero", "x_inner", "x_channels", "y_zero", "y_inner", "y_channels", "steps",
                                   "images", "blocks", "low", "high", "slew"])  # fmt: skip
    def _run(x, x_map, x_scale, x_bias, x_grid, x_zero, x_inner, x_channels, y, y_map, y_scale, y_bias, y_grid, y_zero,
             y_inner, y_channels, start, theta, out, moves, late, steps, images, neurons, blocks, low, high, slew,
             X_SCALED: tl.constexpr, X_BIASED: tl.constexpr, X_ROUNDED: tl.constexpr, Y_SCALED: tl.constexpr,
             Y_BIASED: tl.constexpr, Y_ROUNDED: tl.constexpr, SECOND: tl.constexpr, DIVIDED: tl.constexpr,
             WIDE: tl.constexpr, FLOAT: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
        program = tl.program_id(0)
        image = program // blocks
        i = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
        inside = i < neurons
        now = tl.load(start + image.to(tl.int64) * neurons + i, inside, other=0).to(tl.int32)
        goal = now
        x_by, x_more, y_by, y_more = 0.0, 0.0, 0.0, 0.0
        x_channel, y_channel = (i // x_inner) % x_channels, (i // y_inner) % y_channels
        if X_SCALED:
            x_by = tl.load(x_scale + x_channel)
        if X_BIASED:
            x_more = tl.load(x_bias + x_channel)
        if Y_SCALED:
            y_by = tl.load(y_scale + y_channel)
        if Y_BIASED:
            y_more = tl.load(y_bias + y_channel)
        # Rows are on their way one step ahead, and which row it will be is known two steps ahead.
        last = steps - 1
        x_row = tl.load(x_map + image)
        x_next = tl.load(x_map + tl.minimum(1, last) * images + image)
        x_value = tl.load(x + x_row * neurons + i, inside, other=0)
        y_row, y_next, y_value = x_row, x_next, x_value
        if SECOND:
            y_row = tl.load(y_map + image)
            y_next = tl.load(y_map + tl.minimum(1, last) * images + image)
            y_value = tl.load(y + y_row * neurons + i, inside, other=0)
        moved = True
        behind = False
        for t in range(steps):
            at = t * images + image
            ahead = tl.minimum(t + 2, last) * images + image
            x_after = tl.load(x_map + ahead)
            x_moves = x_next != x_row
            x_coming = tl.load(x + x_next * neurons + i, tl.where(x_moves, inside, False), other=0)
            moves_next = x_moves
            y_after, y_moves, y_coming = x_after, x_moves, x_coming
            if SECOND:
                y_after = tl.load(y_map + ahead)
                y_moves = y_next != y_row
                y_coming = tl.load(y + y_next * neurons + i, tl.where(y_moves, inside, False), other=0)
                moves_next = x_moves | y_moves
            if moved:
                drive = _term(x_value, x_by, x_more, x_grid, x_zero, FLOAT, X_SCALED, X_BIASED, X_ROUNDED)
                if SECOND:
                    drive = drive + _term(y_value, y_by, y_more, y_grid, y_zero, FLOAT, Y_SCALED, Y_BIASED, Y_ROUNDED)
                if DIVIDED:
                    if WIDE:
                        drive = drive / tl.load(theta)
                    else:
                        drive = tl.div_rn(drive, tl.load(theta))  # `/` is approximate in float32
                code = tl.floor(drive + 0.5)
                code = tl.where(code > low.to(FLOAT), code, low.to(FLOAT))  # NaN is low
                code = tl.minimum(code, high.to(FLOAT))
                goal = code.to(tl.int32) - low
            if moved | behind:
                move = tl.minimum(tl.maximum(goal - now, -slew), slew)
                move = tl.where(inside, move, 0)
                now = now + move
                # Three counts in one sum: up, down, and who is not there yet; each is below 2^20.
                counts = tl.maximum(move, 0).to(tl.int64) + (tl.maximum(-move, 0).to(tl.int64) << 20)
                counts += tl.where(inside & (goal != now), 1, 0).to(tl.int64) << 40
                counts = tl.sum(counts, 0)
                behind = (counts >> 40) > 0
                up, down = counts & 0xFFFFF, (counts >> 20) & 0xFFFFF
                if up + down > 0:
                    tl.atomic_add(moves + at, up + (down << 32))
                if behind:
                    tl.store(late + at, 1)  # whoever writes, writes the same
            tl.store(out + at.to(tl.int64) * neurons + i, now.to(tl.uint8), inside)
            x_value = tl.where(x_moves, x_coming, x_value)
            x_row, x_next = x_next, x_after
            if SECOND:
                y_value = tl.where(y_moves, y_coming, y_value)
                y_row, y_next = y_next, y_after
            moved = moves_next


def suits(terms: list[Rows], start: Tensor | None) -> bool:
    """Whether these rows can be scanned here: they lie on a GPU, and Triton is there."""
    rows = [t.rows for t in terms]
    if triton is None or rows[0].device.type != "cuda" or len(terms) > 2:
        return False
    if any(r.device != rows[0].device or r.dtype not in _TYPES or r.shape[1:] != rows[0].shape[1:] for r in rows):
        return False
    return all(t.dtype in (torch.float32, torch.float64) for t in terms)


def scan(
    terms: list[Rows],
    dtype: torch.dtype,
    start: Tensor | None,
    theta: float,
    levels: Levels,
    slew: int,
    every: bool = False,
) -> Found:
    """Scan rows that :func:`suits`; as :func:`spikezip.kernels.native.scan`, with the rows left where they are.

    With ``every``, all rows stay, and the CPU is not waited for: counts stay on the GPU too.
    """
    terms = [t if t.grid is None or _rounds(t) else t.numbers() for t in terms]
    device = terms[0].rows.device
    steps, images = terms[0].map.shape
    layout = layout_of(terms[0].rows)
    shape = terms[0].rows.shape[1:]
    neurons = shape.numel()
    if start is None:
        begin = torch.empty((images, *shape), dtype=torch.uint8, device=device, memory_format=layout)
        begin.fill_(-levels.lowest)
    else:
        begin = (start.to(torch.int16) - levels.lowest).to(torch.uint8).contiguous(memory_format=layout)
    out = torch.empty((steps * images, *shape), dtype=torch.uint8, device=device, memory_format=layout)
    counts = torch.zeros((2, steps, images), dtype=torch.int64, device=device)
    moves, late = counts
    threshold = torch.full((), theta, dtype=dtype, device=device)
    first, second = _arguments(terms[0], dtype, layout), _arguments(terms[-1], dtype, layout)
    blocks = triton.cdiv(neurons, _BLOCK)  # type: ignore[union-attr]
    launch = _run[(images * blocks,)]  # pyright: ignore[reportIndexIssue]
    launch(
        *first["pointers"], *second["pointers"], begin, threshold, out, moves, late,
        steps, images, neurons, blocks, levels.lowest, levels.highest, min(slew, 256),
        **{f"X_{k}": v for k, v in first["constants"].items()},
        **{f"Y_{k}": v for k, v in second["constants"].items()},
        SECOND=len(terms) > 1,
        DIVIDED=theta != 1.0,
        WIDE=dtype is torch.float64,
        FLOAT=tl.float64 if dtype is torch.float64 else tl.float32,
        BLOCK=_BLOCK,
        enable_fp_fusion=False,
    )  # fmt: skip
    both, behind = counts if every else counts.cpu()
    negative = both >> 32
    spikes, behind = (both & 0xFFFFFFFF) + negative, behind > 0
    if every:
        return Found(out, every_row(steps, images), spikes, negative, behind)
    new = spikes.T > 0
    new[:, 0] = True
    map = (new.flatten().cumsum(0) - 1).reshape(images, steps).T.contiguous()
    image, step = new.nonzero(as_tuple=True)
    return Found(gather(out, step * images + image), map, spikes, negative, behind)


def _rounds(term: Rows) -> bool:
    """Whether the kernel can round these rows to fixed point itself."""
    plain = term.bias is None and not term.zero and not isinstance(term.scale, Tensor)
    return plain and term.rows.dtype is torch.float64


def _arguments(term: Rows, dtype: torch.dtype, layout: torch.memory_format) -> dict[str, Any]:
    """What the kernel needs to know of one stream."""
    rows = term.rows.contiguous(memory_format=layout)
    device = rows.device
    scale = None if term.grid else term.scale
    if isinstance(scale, Tensor):
        scale = scale.to(device, dtype).flatten()
    elif scale is not None:
        scale = torch.full((1,), scale, dtype=dtype, device=device)
    bias = None if term.bias is None else term.bias.to(device, dtype)
    per_channel = next((v for v in (bias, scale) if v is not None and v.numel() > 1), None)
    channels = 1 if per_channel is None else per_channel.numel()
    if scale is not None:
        scale = scale.expand(channels).contiguous()
    if bias is not None:
        bias = bias.expand(channels).contiguous()
    grid = None
    if term.grid is not None:
        exponent, limit = term.grid
        factor = 1.0 if term.scale is None else term.scale
        grid = to_device(torch.tensor([factor, 2.0**exponent, limit, 2.0**-exponent], dtype=torch.float64), device)
    order = [0, 2, 3, 1] if layout is torch.channels_last else list(range(rows.dim()))  # of dimensions in memory
    behind = order[order.index(term.channels % rows.dim()) + 1 :]
    inner = math.prod(rows.shape[d] for d in behind)
    return {
        "pointers": (rows, to_device(term.map, device).contiguous(), rows if scale is None else scale,
                     rows if bias is None else bias, rows if grid is None else grid, term.zero, max(inner, 1),
                     channels),
        "constants": {"SCALED": scale is not None, "BIASED": bias is not None, "ROUNDED": grid is not None},
    }  # fmt: skip
