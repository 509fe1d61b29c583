"""Kernels in C++, compiled on first use by whatever compiler is at hand; without one, torch does the work."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spikezip.kernels.alone import has_no_compiler
from spikezip.kernels.rows import SMOOTH, Coming, Rows, Smooth, channels_lie_last
from spikezip.levels import Levels

_SOURCES = [Path(__file__).with_name(name) for name in ("scan.cpp", "events_vnni.cpp", "events_avx2.cpp")]
_HEADERS = [Path(__file__).with_name(name) for name in ("scan.h", "events.h")]
# Without contraction, each operation rounds as torch's does. No -ffast-math for the same reason.
_FLAGS = ["-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-std=c++17"]
_WORTH_COMPILING = 1 << 21  #: neurons times steps; below, torch is done before a compiler is
_WORTH_A_PASS = 1 << 16  #: numbers; fewer stay in the fastest cache anyway
_STRIP = 2048  #: neurons handled at once: their sums stay in the fastest cache
_TYPES = {torch.float32: 0, torch.float64: 1, torch.uint8: 2}


class _Term(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("each", ctypes.c_void_p),
        ("map", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("scales", ctypes.c_int64),
        ("biases", ctypes.c_int64),
        ("type", ctypes.c_int32),
        ("zero", ctypes.c_int32),
        ("number", ctypes.c_double),
        ("factor", ctypes.c_double),
        ("steps", ctypes.c_double),
        ("limit", ctypes.c_double),
        ("times", ctypes.c_double),
        ("span", ctypes.c_int64),
        ("function", ctypes.c_int32),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        ("terms", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("count", "wide", "steps", "images", "neurons", "period")),
        ("theta", ctypes.c_double),
        *((name, ctypes.c_int64) for name in ("low", "high", "slew")),
        *((name, ctypes.c_void_p) for name in ("start", "out", "map", "spikes", "negative", "behind", "last")),
    )


@dataclass(frozen=True)
class Found:
    """What the scan gives: codes counted from the lowest, counts ``[K, B]``, and maybe the tracers after it."""

    rows: Tensor
    map: Tensor
    spikes: Tensor
    negative: Tensor
    behind: Tensor
    last: Tensor | None = None


def suits(terms: list[Rows], start: Tensor | None) -> bool:
    """Whether these rows can be scanned natively, and are worth it."""
    shape = terms[0].rows.shape[1:]
    for t in terms:
        rows = t.rows
        # Rows that are still to come have no memory yet.
        if rows.device.type not in ("cpu", "meta") or rows.dtype not in _TYPES or rows.shape[1:] != shape:
            return False
        if t.dtype not in (torch.float32, torch.float64) or (t.grid and rows.dtype is not torch.float64):
            return False
    work = terms[0].map.numel() * shape.numel()
    return library(work >= _WORTH_COMPILING) is not None


def suits_smooth(smooth: Smooth, terms: list[Rows], theta: float, levels: Levels) -> bool:
    """Whether a function between these rows and the neurons can be estimated: its fixed point cuts off no code."""
    one = len(terms) == 1 and terms[0].dtype is torch.float32 and not terms[0].grid and theta == 1.0
    if smooth.function == "softmax" and isinstance(terms[0].scale, Tensor):  # whose channels may lie elsewhere
        return False
    return one and max(-levels.lowest, levels.highest) + 1 < smooth.limit * 2.0**-smooth.exponent


_loaded: dict[str, ctypes.CDLL | None] = {}
_loading = threading.Lock()  # who comes second finds what the first has compiled


def library(build: bool = True) -> ctypes.CDLL | None:
    """The compiled kernels; None if there is no compiler, or they have not been built and ``build`` is not set."""
    if has_no_compiler():
        return None
    with _loading:
        if "kernels" not in _loaded and (build or _path().exists()):
            _loaded["kernels"] = _open(_path())
        return _loaded.get("kernels")


def _open(path: Path) -> ctypes.CDLL | None:
    problem: str | None = None
    for anew in (False, True) if path.exists() else (True,):  # a file that is damaged, or another system's, is replaced
        problem = _compile(path) if anew else None
        if problem is None:
            try:
                return _load(path)
            except (OSError, AttributeError) as reason:
                problem = f"spikezip's kernels could not be loaded: {reason}."
    warnings.warn(
        f"{problem} Neurons run in torch instead: the same spikes, more slowly.", RuntimeWarning, stacklevel=3
    )
    return None


def _load(path: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(str(path))
    i32, i64, pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
    found.spikezip_scan.restype = i64
    found.spikezip_scan.argtypes = [pointer]
    found.spikezip_numbers.restype = None
    found.spikezip_numbers.argtypes = [pointer, i32, i64, i64, i64, pointer]
    if hasattr(found, "spikezip_events"):  # only where the processor has AVX2
        found.spikezip_changes.restype = i64
        found.spikezip_changes.argtypes = [pointer, pointer, i64, pointer, i64, i64, i32, pointer, pointer]
        if hasattr(found, "spikezip_events_and_scan"):  # and dot products of bytes
            found.spikezip_events_and_scan.restype = i64
            found.spikezip_events_and_scan.argtypes = [
                pointer, pointer, i32, pointer, i32, pointer, pointer, i64, pointer, pointer, pointer, pointer,
            ]  # fmt: skip
        found.spikezip_events.restype = None
        found.spikezip_events.argtypes = [pointer, pointer, i32, pointer, i32, pointer, pointer, i64, pointer]
    return found


@functools.cache
def _path() -> Path:
    """Where the compiled kernels are kept: one file per source, compiler and processor."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    sources = [source.read_text() for source in (*_SOURCES, *_HEADERS)]
    key = "\n".join([*sources, *_FLAGS, str(_compiler()), platform.machine(), _processor()])
    return Path(cache) / "spikezip" / f"kernels-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"


def _compiler() -> str | None:
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")


def _processor() -> str:
    # -march=native binds the code to this processor's instructions; home folders are shared between machines.
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor() + torch.backends.cpu.get_cpu_capability()


def _compile(path: Path) -> str | None:
    """Compile to ``path``; what went wrong, or None."""
    compiler = _compiler()
    if compiler is None:
        return "No C++ compiler was found (g++ or clang++; or set CXX)."
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            done = subprocess.run(
                [compiler, *_FLAGS, "-shared", "-fPIC", "-o", str(made), *map(str, _SOURCES)],
                capture_output=True, text=True, timeout=600,
            )  # fmt: skip
            if done.returncode:
                return f"{compiler} could not compile spikezip's kernels: {done.stderr.strip()[:300]}."
            ctypes.CDLL(str(made))
            made.replace(path)  # whole or not at all: other processes may be doing the same
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"spikezip's kernels could not be compiled: {error}."
    return None


def scan(
    terms: list[Rows],
    dtype: torch.dtype,
    start: Tensor | None,
    theta: float,
    levels: Levels,
    slew: int,
    smooth: Smooth | None = None,
) -> Found:
    """Scan rows that :func:`suits`; through a function, where :func:`suits_smooth`."""
    steps, images = terms[0].map.shape
    fastest = next((t.channels for t in terms if t.is_exact_sum), -1)  # the channels that are to lie fastest in memory
    terms = [t.numbers() if t.is_exact_sum and t.channels != fastest else t for t in terms]
    coming = next(((i, t.pending) for i, t in enumerate(terms) if isinstance(t, Coming)), None)
    terms = [t if coming and i == coming[0] else t.now() for i, t in enumerate(terms)]  # one is computed on the way
    along = smooth is not None and smooth.function == "softmax"
    move = not along and _channels_last(terms)
    rows = [_in_memory(t.rows, move) for t in terms]
    shape = rows[0].shape[1:]
    neurons, period = shape.numel(), _period(rows[0])
    maps = [t.map.contiguous() for t in terms]
    factors = [_factors(t, dtype) for t in terms]
    packed = (_Term * len(terms))(
        *(_term(t, r, m, *factor) for t, r, m, factor in zip(terms, rows, maps, factors, strict=True))
    )
    if smooth is not None:
        first = packed[0]
        first.times, first.steps, first.limit = smooth.factor, 2.0**smooth.exponent, float(smooth.limit)
        first.span, first.function = shape[-1], 1 + SMOOTH.index(smooth.function)
    begin = None
    if start is not None:  # what does not fit a byte is cut off, and counts from the lowest all the same
        whole = start if start.dtype is torch.int8 else start.to(torch.int16).to(torch.int8)
        begin = _in_memory(whole, move)
    last = torch.empty((images, *shape), dtype=torch.int8)
    out = torch.empty((steps * images, *shape), dtype=torch.uint8)
    map, spikes, negative = torch.empty((3, steps, images), dtype=torch.int64).unbind()
    behind = torch.empty((steps, images), dtype=torch.bool)
    found = library()
    assert found is not None
    layer = _Layer(
        ctypes.addressof(packed), len(terms), dtype == torch.float64, steps, images, neurons, period, theta,
        levels.lowest, levels.highest, min(slew, levels.range), _address(begin), out.data_ptr(), map.data_ptr(),
        spikes.data_ptr(), negative.data_ptr(), behind.data_ptr(), last.data_ptr(),
    )  # fmt: skip
    if coming is None:
        made = found.spikezip_scan(ctypes.addressof(layer))
    else:
        which, pending = coming
        made = pending.scan(ctypes.addressof(layer), ctypes.addressof(packed[which]))
    out, last = (v.movedim(-1, 1) if move else v for v in (out[:made], last))
    return Found(out, map, spikes, negative, behind, last if levels.storage is torch.int8 else None)


def numbers(term: Rows) -> Tensor | None:
    """The value of rows that are to be scaled per channel, in one pass; None where torch has to do it."""
    worth = isinstance(term.scale, Tensor) and isinstance(term.rows, Tensor) and term.rows.numel() >= _WORTH_A_PASS
    if not worth or not suits([term], None) or (found := library(build=False)) is None:
        return None
    move = _channels_last([term])
    rows = _in_memory(term.rows, move)
    out = torch.empty_like(rows, dtype=term.dtype)
    neurons, period = rows[0].numel(), _period(rows)
    scale, bias = _factors(term, term.dtype)
    packed = _term(term, rows, None, scale, bias)
    wide = term.dtype == torch.float64
    found.spikezip_numbers(ctypes.addressof(packed), wide, rows.shape[0], neurons, period, out.data_ptr())
    return out.movedim(-1, 1) if move else out


def _period(rows: Tensor) -> int:
    """How many neurons are handled at once: whole repeats of the channels."""
    channels = rows.shape[-1] if rows.dim() > 1 else 1
    return channels * max(1, _STRIP // channels)


def _channels_last(terms: list[Rows]) -> bool:
    """Whether the second dimension is to be the fastest: the channels, wherever there are channels to tell apart."""
    for t in terms:
        if isinstance(t.scale, Tensor):
            return t.channels == 1
    return channels_lie_last(terms[0].rows)


def _in_memory(values: Tensor, move: bool) -> Tensor:
    """Values in the order of memory, channels at the end."""
    return (values.movedim(1, -1) if move else values).contiguous()


def _rounding(term: Rows) -> tuple[float, float, float]:
    """What fixed point asks of a term: the factor before, steps per unit (0: no rounding), and the limit."""
    if term.grid is None:
        return 1.0, 0.0, 0.0
    exponent, limit = term.grid
    return (1.0 if term.scale is None else float(term.scale)), 2.0**exponent, float(limit)


def _factors(term: Rows, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """Scale and bias of each channel, in the type of the sum."""
    if term.grid:
        return None, None
    scale, bias = (v.to(dtype).contiguous() if isinstance(v, Tensor) else None for v in (term.scale, term.bias))
    return scale, bias


def _term(term: Rows, rows: Tensor, map: Tensor | None, scale: Tensor | None, bias: Tensor | None) -> _Term:
    """A term as the kernels read it; the tensors have to outlive it."""
    number = 1.0 if term.scale is None or scale is not None else float(term.scale)
    return _Term(
        rows.data_ptr(), None, _address(map), _address(scale), _address(bias), 0 if scale is None else scale.numel(),
        0 if bias is None else bias.numel(), _TYPES[rows.dtype], term.zero, number, *_rounding(term),
    )  # fmt: skip


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
