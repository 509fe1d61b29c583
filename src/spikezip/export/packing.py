"""Weights of few bits in few bits: whole numbers, and one power of two for each channel."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikezip.errors import BundleError
from spikezip.export.values import fields

_FEWEST = 256  #: values that are worth packing
_LEAST = 4  #: values of a channel, whose exponent takes about as much as one of them
_MOST_BITS = 8
_DIGITS = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24, torch.float64: 53}
_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in _DIGITS}
_PART = 1 << 20  #: codes that are taken apart into bits at a time
_NONE = 1 << 14  #: exponent of what is 0
_GLANCE = 4096  #: values that are looked at first
_FARTHEST = 1000  #: exponent of a step, either sign


def pack(values: Tensor) -> tuple[dict[str, Any], Tensor] | None:
    """Contiguous values as (what is to be known, codes), if every one is such a whole number; None if not.

    ``value = code * 2**exponent[channel]``, for one dimension of channels, that which takes the fewest bits. Codes of 8
    bits are int8, of the tensor's shape; of fewer, one stream of bits, each code's sign first, in uint8.

    >>> facts, codes = pack(torch.tensor([[0.5, -1.5, 3.0, 0.0]]).repeat(2, 32))
    >>> facts["bits"], len(codes)
    (4, 128)
    """
    if values.dtype not in _DIGITS or values.numel() < _FEWEST or values.numel() >= 1 << 31:
        return None
    if not bool(torch.isfinite(values).all()):
        return None
    first, last = _digits(values.flatten()[:_GLANCE])
    if bool((first - last >= _MOST_BITS).any()):  # ordinary floats: no need to look at all of them
        return None
    exponent, lowest = _digits(values)
    best: tuple[int, int, Tensor] | None = None
    for axis, channels in enumerate(values.shape):
        if channels * _LEAST > values.numel():
            continue
        steps = lowest.transpose(0, axis).flatten(1).amin(1)
        steps = torch.where(steps == _NONE, 0, steps)
        span = exponent - _along(steps, axis, values.dim())
        bits = int(torch.where(lowest == _NONE, 0, span).max()) + 1
        if bits <= _MOST_BITS and (best is None or bits < best[0]) and int(steps.abs().max()) <= _FARTHEST:
            best = bits, axis, steps
    if best is None:
        return None
    bits, axis, steps = best
    codes = (values.double() * _sizes(-steps, axis, values.dim())).to(torch.int8)
    facts = {
        "dtype": str(values.dtype).removeprefix("torch."),
        "shape": list(values.shape),
        "bits": bits,
        "axis": axis,
        "exponents": steps.tolist(),
    }
    if not torch.equal(_valued(codes, steps, axis, values.dtype).view(torch.uint8), values.view(torch.uint8)):
        return None  # a zero that has a sign
    return facts, codes if bits == _MOST_BITS else _to_bits(codes, bits)


def unpack(facts: Any, stored: Tensor, name: str) -> Tensor:
    """The inverse of :func:`pack`; BundleError where the two do not fit together."""
    fields(facts, f"the tensor {name!r}", {"dtype": str, "shape": list, "bits": int, "axis": int, "exponents": list})
    shape, bits, axis, steps = facts["shape"], facts["bits"], facts["axis"], facts["exponents"]
    sound = (
        facts["dtype"] in _NAMES
        and 1 <= bits <= _MOST_BITS
        and all(type(size) is int and 1 <= size < 1 << 31 for size in shape)
        and 0 <= axis < len(shape) <= 64
        and len(steps) == shape[axis]
        and all(type(step) is int and -_FARTHEST <= step <= _FARTHEST for step in steps)
    )
    if sound and bits == _MOST_BITS:
        sound = stored.dtype == torch.int8 and list(stored.shape) == shape
    elif sound:
        length = math.ceil(math.prod(shape) * bits / 8)
        sound = stored.dtype == torch.uint8 and list(stored.shape) == [length]
    if not sound:
        raise BundleError(f"the tensor {name!r} is not packed as it states")
    codes = stored if bits == _MOST_BITS else _from_bits(stored, bits, math.prod(shape)).reshape(shape)
    return _valued(codes, torch.tensor(steps), axis, _NAMES[facts["dtype"]])


def _digits(values: Tensor) -> tuple[Tensor, Tensor]:
    """The places, as powers of two, before the first binary digit of each value and of its last that is not 0."""
    mantissa, exponent = torch.frexp(values.double())
    digits = _DIGITS[values.dtype]
    whole = (mantissa * 2.0**digits).long()
    lowest = torch.frexp((whole & -whole).double())[1] - 1 + exponent - digits
    return exponent, torch.where(whole == 0, _NONE, lowest)


def _along(steps: Tensor, axis: int, dims: int) -> Tensor:
    return steps.reshape([-1 if i == axis else 1 for i in range(dims)])


def _sizes(steps: Tensor, axis: int, dims: int) -> Tensor:
    """Two to the power of each step; exact everywhere, which a vectorised ``pow`` need not be."""
    return _along(torch.tensor([math.ldexp(1.0, step) for step in steps.tolist()], dtype=torch.float64), axis, dims)


def _valued(codes: Tensor, steps: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    return (codes.double() * _sizes(steps, axis, codes.dim())).to(dtype)


def _to_bits(codes: Tensor, bits: int) -> Tensor:
    """The last ``bits`` of each code, one after the other."""
    bytes_ = codes.flatten().numpy().view(np.uint8)
    parts = [
        np.packbits(np.unpackbits(bytes_[start : start + _PART, None], axis=1)[:, -bits:])
        for start in range(0, len(bytes_), _PART)
    ]
    return torch.from_numpy(np.concatenate(parts))


def _from_bits(stored: Tensor, bits: int, count: int) -> Tensor:
    codes = torch.empty(count, dtype=torch.int8)
    for start in range(0, count, _PART):
        length = min(_PART, count - start)
        packed = stored[start * bits // 8 : (start + length) * bits // 8 + 1].numpy()
        each = np.unpackbits(packed, count=length * bits).reshape(length, bits)
        whole = np.concatenate([np.repeat(each[:, :1], 8 - bits, axis=1), each], axis=1)  # the sign goes on
        codes[start : start + length] = torch.from_numpy(np.packbits(whole, axis=1)[:, 0].view(np.int8))
    return codes
