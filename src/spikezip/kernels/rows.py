"""Values over a block of time steps, stored once for as long as they do not change."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from spikezip.graph import ops
from spikezip.kernels.transfers import to_device
from spikezip.quantize.grid import FLOAT32_BITS, FLOAT64_BITS, to_fixed_point

DIGITS = {torch.float32: FLOAT32_BITS, torch.float64: FLOAT64_BITS}  #: binary digits of whole numbers that a type holds


@dataclass(frozen=True)
class Rows:
    """What a block of K steps and B images holds at one place of a network: ``(rows[map] - zero) * scale + bias``.

    A row is one image's value at one step; steps at which nothing changed for an image share a row, so that operations
    cost what changes. Codes stay bytes, and sums of integer products stay undivided, until someone needs numbers.

    Attributes:
        rows: ``[R, ...]`` (or several such tensors, or another dimension of the batch, between operations).
        map: which row holds at (step, image), ``[K, B]`` int64.
        dtype: of the value.
        zero: stands for 0 in ``rows`` (bytes are counted from the lowest code).
        scale: a number, or one per channel; None for 1.
        bias: one per channel; None for 0.
        channels: the dimension of the channels.
        top: for codes, the greatest count in ``rows``; 0 for anything else.
        grid: exponent and limit of the fixed point that the value, in the type of ``rows``, is still to be rounded to
            (see :func:`~spikezip.quantize.grid.to_fixed_point`); ``dtype`` then holds every rounded value.
    """

    rows: Any
    map: Tensor
    dtype: torch.dtype
    zero: int = 0
    scale: Tensor | float | None = None
    bias: Tensor | None = None
    channels: int = -1
    top: int = 0
    grid: tuple[int, int] | None = None

    @property
    def is_code(self) -> bool:
        """Whether the value is whole codes, as they are."""
        return self.top > 0 and self.scale is None

    @property
    def rows_are_bytes(self) -> bool:
        """Whether the rows are one tensor of bytes."""
        return isinstance(self.rows, Tensor) and self.rows.dtype is torch.uint8

    @property
    def is_scaled_code(self) -> bool:
        """Whether the value is whole codes in bytes, as they are or times a number."""
        return self.top > 0 and self.rows_are_bytes and not self.is_exact_sum and math.isfinite(self.ratio)

    @property
    def ratio(self) -> float:
        """What codes are multiplied with."""
        return 1.0 if self.scale is None else float(self.scale)

    @property
    def farthest(self) -> int:
        """The greatest magnitude of codes, unscaled."""
        return max(self.zero, self.top - self.zero)

    @property
    def is_plain(self) -> bool:
        """Whether the rows are the value itself."""
        return (
            isinstance(self.rows, Tensor)
            and self.rows.dtype is self.dtype
            and not (self.top or self.zero or self.grid or self.scale is not None or self.bias is not None)
        )

    @property
    def is_exact_sum(self) -> bool:
        """Whether each channel is still to be scaled: of integer sums, or of numbers that are to be float64."""
        return isinstance(self.scale, Tensor)

    @cached_property
    def value(self) -> Any:
        """The rows as numbers."""
        from spikezip.kernels import native  # reads Rows itself

        if not isinstance(self.rows, Tensor):
            return self.rows
        if (value := native.numbers(self)) is not None:
            return value
        value = self.rows if self.grid else self.rows.to(self.dtype)
        for change, number in ((torch.sub, self.zero or None), (torch.mul, self.scale), (torch.add, self.bias)):
            if number is not None:  # the first change makes a tensor of our own; the others write to it
                out = None if value is self.rows else value
                value = change(value, self._along(number), out=out)
        return to_fixed_point(value, *self.grid).to(self.dtype) if self.grid else value

    def _along(self, values: Tensor | float) -> Tensor | float:
        if not isinstance(values, Tensor) or values.dim() == 0:
            return values
        behind = self.rows.dim() - 1 - self.channels if self.channels >= 0 else 0
        return values.to(self.dtype).reshape(-1, *[1] * behind)

    def numbers(self) -> Rows:
        """The same value with its rows as numbers."""
        return Rows(self.value, self.map, self.dtype)

    def now(self) -> Rows:
        """The same value with its rows in memory (see :class:`Coming`)."""
        return self

    def with_rows(self, rows: Any, map: Tensor | None = None) -> Rows:
        """Other rows (moved about, or fewer), read the same way."""
        return replace(self, rows=rows, map=self.map if map is None else map)


@dataclass(frozen=True)
class Coming(Rows):
    """Sums that are still to be computed: by a scan on its way, or when someone asks for numbers.

    Attributes:
        rows: of their shape and layout, without memory.
        pending: whoever computes them.
    """

    pending: Any = None

    def now(self) -> Rows:
        fields = (self.zero, self.scale, self.bias, self.channels)
        return Rows(self.pending.sums().reshape(self.rows.shape), self.map, self.dtype, *fields)

    @cached_property
    def value(self) -> Any:
        """The rows as numbers."""
        return self.now().value


#: Functions that a scan may estimate, by torch's names; softmax is that along the last dimension.
SMOOTH = ("softmax", "gelu", "silu", "sigmoid", "hardswish", "hardsigmoid", "tanh")


@dataclass(frozen=True)
class Smooth:
    """What an integer network has between a sum and neurons: ``factor * f(x)`` in float64, rounded to fixed point.

    Attributes:
        function: one of ``SMOOTH``.
        factor: what it is multiplied with.
        exponent: of the fixed point (see :func:`~spikezip.quantize.grid.to_fixed_point`).
        limit: of the fixed point, which float32 holds.
    """

    function: str
    factor: float
    exponent: int
    limit: int

    def __call__(self, drive: Rows) -> Rows:
        """The drive of the neurons, one torch operation after the other."""
        function = getattr(torch.nn.functional, self.function)
        value = function(drive.value.double(), **({"dim": -1} if self.function == "softmax" else {})).mul_(self.factor)
        return Rows(to_fixed_point(value, self.exponent, self.limit).float(), drive.map, torch.float32)


@dataclass(frozen=True)
class Apart:
    """Several values that make one, left apart for readers that take each as it is."""

    terms: tuple[Rows, ...]
    dtype: torch.dtype

    @property
    def map(self) -> Tensor:
        """As of the value."""
        return self._numbers.map

    @cached_property
    def _numbers(self) -> Rows:
        map, picks = union([t.map for t in self.terms])
        terms = [t.now() for t in self.terms]
        values = [t.with_rows(gather(t.rows, pick)).value for t, pick in zip(terms, picks, strict=True)]
        return Rows(self._together(values), map, self.dtype)

    @property
    def is_exact(self) -> bool:
        """Of codes, whatever they are: whether each times its scale, and what they make, are numbers of its type."""
        raise NotImplementedError

    def _together(self, values: list[Tensor]) -> Tensor:
        raise NotImplementedError

    @property
    def value(self) -> Tensor:
        """Its rows as numbers."""
        return self._numbers.value

    def numbers(self) -> Rows:
        """The value as one."""
        return self._numbers


@dataclass(frozen=True)
class Sum(Apart):
    """Values that are to be added: the scan does so on its way, and layers add up the sums of each."""

    @property
    def first(self) -> tuple[int, ...]:
        """As of joined codes: all begin together."""
        return (0,) * len(self.terms)

    @property
    def is_exact(self) -> bool:
        return _are_exact(self.terms, self.dtype)

    def _together(self, values: list[Tensor]) -> Tensor:
        return functools.reduce(torch.add, values)


@dataclass(frozen=True)
class Joined(Apart):
    """Codes that are to be joined along their channels, each with a scale of its own.

    Attributes:
        channels: the dimension of the channels.
        first: where each begins among the joined channels; several that begin together are to be added.
    """

    channels: int
    first: tuple[int, ...]

    @property
    def is_exact(self) -> bool:
        return all(_are_exact(group, self.dtype) for group in self._groups(self.terms))

    def _together(self, values: list[Tensor]) -> Tensor:
        return torch.cat([functools.reduce(torch.add, group) for group in self._groups(values)], self.channels)

    def _groups(self, values: Sequence[Any]) -> list[list[Any]]:
        """Those that begin together, in the order of the channels."""
        groups: dict[int, list[Any]] = {}
        for first, value in zip(self.first, values, strict=True):
            groups.setdefault(first, []).append(value)
        return list(groups.values())


def _are_exact(codes: Sequence[Rows], dtype: torch.dtype) -> bool:
    """Whether codes, each times its scale, and their sum are numbers of a type."""
    ratios = [c.ratio.as_integer_ratio() for c in codes]
    finest = max(step for _, step in ratios)  # of powers of two
    farthest = sum(abs(whole) * (finest // step) * c.farthest for (whole, step), c in zip(ratios, codes, strict=True))
    return farthest < 2 ** DIGITS.get(dtype, 0)


def union(maps: list[Tensor]) -> tuple[Tensor, list[Tensor | None]]:
    """Rows for values that change at different times: a new row wherever one of them changes.

    Args:
        maps: ``[K, B]`` each.

    Returns:
        The map of the new rows, and for each old map the old row of each new one (None: the rows as they are).
    """
    first = maps[0]
    if all(m is first or torch.equal(m, first) for m in maps[1:]):
        return first, [None] * len(maps)
    every = every_row(*first.shape)
    if any(m is every for m in maps):
        return every, [None if m is every else m.flatten() for m in maps]
    changed = torch.ones(first.shape, dtype=torch.bool, device=first.device)
    changed[1:] = False
    for m in maps:
        changed[1:] |= m[1:] != m[:-1]
    of_images = changed.T.flatten()
    map = (of_images.cumsum(0) - 1).reshape(first.shape[1], -1).T.contiguous()
    return map, [m.T.flatten()[of_images] for m in maps]


@functools.lru_cache(maxsize=16)
def every_row(steps: int, images: int) -> Tensor:
    """The map of values that have a row for each image at each step, whether it changed or not; one step's together."""
    return torch.arange(steps * images).reshape(steps, images)


def gather(rows: Tensor, pick: Tensor | None) -> Tensor:
    """``rows[pick]``, in the memory layout that ``rows`` has."""
    if pick is None:
        return rows
    pick = to_device(pick, rows.device)
    if channels_lie_last(rows) and not rows.is_contiguous():
        return rows.movedim(1, -1).index_select(0, pick).movedim(-1, 1)
    return rows.index_select(0, pick)


def channels_lie_last(values: Tensor) -> bool:
    """Whether channels, the second dimension, come last in memory."""
    return values.dim() > 2 and values.movedim(1, -1).is_contiguous()


def layout_of(values: Tensor) -> torch.memory_format:
    """The layout of images, or of anything else, by torch's name."""
    return torch.channels_last if values.dim() == 4 and channels_lie_last(values) else torch.contiguous_format


def tracers(codes: Rows, pick: Tensor, dtype: torch.dtype) -> Tensor:
    """Some rows of codes as the whole numbers they stand for, whatever their scale."""
    rows = gather(codes.rows, pick)
    return (rows.to(torch.int16) - codes.zero if codes.zero else rows).to(dtype)


def max_pool2d(
    codes: Tensor,
    kernel: list[int],
    stride: list[int] = (),  # type: ignore[assignment]
    padding: list[int] = (0,),  # type: ignore[assignment]
    dilation: list[int] = (1,),  # type: ignore[assignment]
    ceil_mode: bool = False,
) -> Tensor:
    """Maximum over windows of bytes, undilated, which torch's own pooling takes only for the smallest images.

    Padding never wins: bytes are counted from the lowest code.
    """
    (high, wide), (down, right), (top, left) = (ops.of_each_dim(v) for v in (kernel, stride or kernel, padding))
    rows, below = _windows(codes.shape[2], high, down, top, ceil_mode)
    columns, behind = _windows(codes.shape[3], wide, right, left, ceil_mode)
    if top or left or below > 0 or behind > 0:
        codes = torch.nn.functional.pad(codes, (left, left + max(behind, 0), top, top + max(below, 0)))
    found = codes[:, :, : (rows - 1) * down + 1 : down]
    for i in range(1, high):
        found = torch.maximum(found, codes[:, :, i : i + (rows - 1) * down + 1 : down])
    codes, found = found, found[..., : (columns - 1) * right + 1 : right]
    for i in range(1, wide):
        found = torch.maximum(found, codes[..., i : i + (columns - 1) * right + 1 : right])
    return found


def _windows(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> tuple[int, int]:
    """How many windows there are along one dimension, and how far the last one goes past the padding."""
    room = size + 2 * padding - kernel
    count = (-(-room // stride) if ceil_mode else room // stride) + 1
    if ceil_mode and (count - 1) * stride >= size + padding:  # none begins in the padding behind
        count -= 1
    return count, (count - 1) * stride - room
