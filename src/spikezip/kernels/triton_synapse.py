"""Sums of 8-bit weights times codes as a Triton kernel: bytes come in, whole sums go out, nothing is rounded.

One program computes some output channels of some places (an implicit matrix product: the windows of a convolution are
read where they lie, none is written out). Products and sums are 32-bit integers on the GPU's units for 8-bit matrices,
so that no algorithm can bring in fractions, and codes need not become floats first.

As :mod:`~spikezip.kernels.triton_scan`, this can be imported without Triton, and interpreted on a CPU.
"""
# What kernels hold is typed by Triton's compiler.
# pyright: reportOperatorIssue=false, reportCallIssue=false, reportIndexIssue=false, reportOptionalMemberAccess=false

from typing import Any

import torch
from torch import Tensor

from spikezip.kernels.rows import Rows

try:
    import triton  # pyright: ignore[reportMissingImports]
    import triton.language as tl  # pyright: ignore[reportMissingImports]
except ImportError:
    triton = None

_TOP = 127  #: the greatest number of a signed byte
_LEAST = 16  #: input channels; with fewer most of a matrix unit would multiply by 0

if triton is not None:
    # No specialization: each number of rows, each width of an image would be another compilation.
    @triton.jit(do_not_specialize=["places", "high", "wide", "out_high", "out_wide", "kernel_high", "kernel_wide",
                                   "down", "right", "top", "left", "spread_down", "spread_right"])  # fmt: skip
    def _run(codes, weight, out, places, high, wide, inputs, out_high, out_wide, outputs, kernel_high, kernel_wide,
             down, right, top, left, spread_down, spread_right, PLACES: tl.constexpr, OUTPUTS: tl.constexpr,
             INPUTS: tl.constexpr):  # fmt: skip
        blocks = tl.cdiv(outputs, OUTPUTS)
        program = tl.program_id(0)
        place = (program // blocks) * PLACES + tl.arange(0, PLACES)
        output = (program % blocks) * OUTPUTS + tl.arange(0, OUTPUTS)
        channel = tl.arange(0, INPUTS)
        column = place % out_wide
        line = (place // out_wide) % out_high
        row = (place // out_wide) // out_high
        line = line * down - top
        column = column * right - left
        sums = tl.zeros((PLACES, OUTPUTS), dtype=tl.int32)
        parts = tl.cdiv(inputs, INPUTS)
        for k in range(kernel_high * kernel_wide * parts):
            tap = k // parts
            y = line + (tap // kernel_wide) * spread_down
            x = column + (tap % kernel_wide) * spread_right
            i = (k % parts) * INPUTS + channel
            seen = (place < places) & (y >= 0) & (y < high) & (x >= 0) & (x < wide)
            at = ((row.to(tl.int64) * high + y) * wide + x) * inputs
            read = tl.load(codes + at[:, None] + i[None, :], seen[:, None] & (i < inputs)[None, :], other=0)
            lies = (output * kernel_high * kernel_wide + tap) * inputs
            by = tl.load(weight + lies[None, :] + i[:, None], (output < outputs)[None, :] & (i < inputs)[:, None],
                         other=0)  # fmt: skip
            sums = tl.dot(read, by, sums, out_dtype=tl.int32)
        there = (place < places)[:, None] & (output < outputs)[None, :]
        tl.store(out + place.to(tl.int64)[:, None] * outputs + output[None, :], sums.to(tl.float32), there)


def suits(codes: Rows, weight: Tensor, geometry: Any) -> bool:
    """Whether these sums can be computed here."""
    if triton is None or codes.rows.device.type != "cuda":
        return False
    return fits(codes, weight, geometry)


def fits(codes: Rows, weight: Tensor, geometry: Any) -> bool:
    """Whether codes and weights are what the kernel takes, wherever they lie."""
    inputs = weight.shape[1]
    plain = geometry is None or (geometry[3] == 1 and codes.rows.dim() == 4)
    return plain and inputs >= _LEAST and codes.zero <= _TOP + 1 and codes.top - codes.zero <= _TOP


def sums(codes: Rows, weight: Tensor, geometry: Any, packed: dict[Any, Any]) -> Tensor:
    """The sums of each row, ``[R, out, ...]`` float32, channels last; see :func:`spikezip.kernels.events.begin`."""
    if "triton" not in packed:  # outputs, window, inputs
        packed["triton"] = (weight.permute(0, 2, 3, 1) if geometry else weight).contiguous()
    rows, outputs = codes.rows, weight.shape[0]
    if geometry:
        rows = rows.contiguous(memory_format=torch.channels_last)
        stride, padding, dilation, _ = geometry
        count, inputs, high, wide = rows.shape
        window = weight.shape[2:]
        places = [
            (size + 2 * padding[d] - dilation[d] * (window[d] - 1) - 1) // stride[d] + 1
            for d, size in enumerate((high, wide))
        ]
        out = torch.empty(
            (count, outputs, *places), dtype=torch.float32, device=rows.device, memory_format=torch.channels_last
        )
        sizes = (count * places[0] * places[1], high, wide, inputs, *places, outputs, *window, *stride, *padding,
                 *dilation)  # fmt: skip
    else:
        rows = rows.contiguous()
        inputs = rows.shape[-1]
        out = torch.empty((*rows.shape[:-1], outputs), dtype=torch.float32, device=rows.device)
        sizes = (rows.numel() // inputs, 1, 1, inputs, 1, 1, outputs, 1, 1, 1, 1, 0, 0, 1, 1)
    rows = (rows.to(torch.int16) - codes.zero).to(torch.int8) if codes.zero else rows.view(torch.int8)
    blocks = shape_of(inputs, outputs)
    if sizes[0]:
        grid = triton.cdiv(sizes[0], blocks["PLACES"]) * triton.cdiv(outputs, blocks["OUTPUTS"])
        _run[(grid,)](rows, packed["triton"], out, *sizes, **blocks, enable_fp_fusion=False)
    return out


def shape_of(inputs: int, outputs: int) -> dict[str, int]:
    """How much a program computes, for so many channels."""
    wide = min(max(triton.next_power_of_2(outputs), 16), 128)
    deep = min(max(triton.next_power_of_2(inputs), 32), 128)
    return {"PLACES": 128, "OUTPUTS": wide, "INPUTS": deep, "num_warps": 4, "num_stages": 3}
