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
from spikezip.kernels.rows import Rows
from spikezip.levels import Levels

_SOURCES = [Path(__file__).with_name(name) for name in ("scan.cpp", "events.cpp")]
# Without contraction, each operation rounds as torch's does. No -ffast-math for the same reason.
_FLAGS = ["-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-std=c++17"]
_WORTH_COMPILING = 1 << 21  #: neurons times steps; below, torch is done before a compiler is
_WORTH_A_PASS = 1 << 16  #: numbers; fewer stay in the fastest cache anyway
_STRIP = 2048  #: neurons handled at once: their sums stay in the fastest cache
_TYPES = {torch.float32: 0, torch.float64: 1, torch.uint8: 2}


class _Term(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("map", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("zero", ctypes.c_int32),
        ("factor", ctypes.c_double),
        ("steps", ctypes.c_double),
        ("limit", ctypes.c_double),
    )


@dataclass(frozen=True)
class Found:
    """What the scan gives: codes counted from the lowest, and counts ``[K, B]``."""

    rows: Tensor
    map: Tensor
    spikes: Tensor
    negative: Tensor
    behind: Tensor


def suits(terms: list[Rows], start: Tensor | None) -> bool:
    """Whether these rows can be scanned natively, and are worth it."""
    rows = [t.rows for t in terms]
    if any(r.device.type != "cpu" or r.dtype not in _TYPES or r.shape[1:] != rows[0].shape[1:] for r in rows):
        return False
    if any(t.dtype not in (torch.float32, torch.float64) for t in terms):
        return False
    if any(t.grid and t.rows.dtype is not torch.float64 for t in terms):
        return False
    work = terms[0].map.numel() * rows[0][0].numel()
    return library(work >= _WORTH_COMPILING) is not None


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
    problem = None if path.exists() else _compile(path)
    if problem is None:
        return _load(path)
    warnings.warn(
        f"{problem} Neurons run in torch instead: the same spikes, more slowly.", RuntimeWarning, stacklevel=3
    )
    return None


def _load(path: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(str(path))
    i32, i64, pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
    found.spikezip_scan.restype = i64
    found.spikezip_scan.argtypes = [
        pointer,
        i32,
        i32,
        i64,
        i64,
        i64,
        i64,
        ctypes.c_double,
        i32,
        i32,
        i32,
        *[pointer] * 6,
    ]
    found.spikezip_numbers.restype = None
    found.spikezip_numbers.argtypes = [pointer, i32, i64, i64, i64, pointer]
    if hasattr(found, "spikezip_events"):  # only where the processor has AVX2
        found.spikezip_changes.restype = i64
        found.spikezip_changes.argtypes = [pointer, pointer, i64, i64, i64, i32, *[pointer] * 4]
        found.spikezip_events.restype = None
        found.spikezip_events.argtypes = [pointer, pointer, i32, pointer, i32, *[pointer] * 3, i64, pointer]
    return found


@functools.cache
def _path() -> Path:
    """Where the compiled kernels are kept: one file per source, compiler and processor."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    sources = [source.read_text() for source in _SOURCES]
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
                capture_output=True, text=True, timeout=120,
            )  # fmt: skip
            if done.returncode:
                return f"{compiler} could not compile spikezip's kernels: {done.stderr.strip()[:300]}."
            ctypes.CDLL(str(made))
            made.replace(path)  # whole or not at all: other processes may be doing the same
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"spikezip's kernels could not be compiled: {error}."
    return None


def scan(terms: list[Rows], dtype: torch.dtype, start: Tensor | None, theta: float, levels: Levels, slew: int) -> Found:
    """Scan rows that :func:`suits`."""
    steps, images = terms[0].map.shape
    layout = _layout(terms)
    rows = [t.rows.contiguous(memory_format=layout) for t in terms]
    shape = rows[0].shape[1:]
    neurons, period = shape.numel(), _period(rows[0], layout)
    maps = [t.map.contiguous() for t in terms]
    factors = [
        (None, None) if t.grid else (_repeated(t.scale, period, dtype), _repeated(t.bias, period, dtype)) for t in terms
    ]
    factors = [(torch.ones(period, dtype=dtype) if s is None and b is not None else s, b) for s, b in factors]
    packed = (_Term * len(terms))(
        *(
            _Term(r.data_ptr(), m.data_ptr(), _address(s), _address(b), _TYPES[r.dtype], t.zero, *_rounding(t))
            for t, r, m, (s, b) in zip(terms, rows, maps, factors, strict=True)
        )
    )
    if start is None:
        begin = torch.full((images, neurons), -levels.lowest, dtype=torch.uint8)
    else:
        begin = (start.to(torch.int16) - levels.lowest).to(torch.uint8).contiguous(memory_format=layout)
    out = torch.empty((steps * images, *shape), dtype=torch.uint8, memory_format=layout)
    map, spikes, negative = (torch.empty((steps, images), dtype=torch.int64) for _ in range(3))
    behind = torch.empty((steps, images), dtype=torch.bool)
    found = library()
    assert found is not None
    made = found.spikezip_scan(
        ctypes.addressof(packed), len(terms), dtype == torch.float64, steps, images, neurons, period, theta,
        levels.lowest, levels.highest, slew, begin.data_ptr(), out.data_ptr(), map.data_ptr(), spikes.data_ptr(),
        negative.data_ptr(), behind.data_ptr(),
    )  # fmt: skip
    return Found(out[:made], map, spikes, negative, behind)


def numbers(term: Rows) -> Tensor | None:
    """The value of rows that are to be scaled per channel, in one pass; None where torch has to do it."""
    worth = isinstance(term.scale, Tensor) and isinstance(term.rows, Tensor) and term.rows.numel() >= _WORTH_A_PASS
    if not worth or not suits([term], None) or (found := library(build=False)) is None:
        return None
    rows = term.rows.contiguous(memory_format=_layout([term]))
    out = torch.empty_like(rows, dtype=term.dtype)
    neurons, period = rows[0].numel(), _period(rows, _layout([term]))
    scale, bias = _repeated(term.scale, period, term.dtype), _repeated(term.bias, period, term.dtype)
    packed = _Term(
        rows.data_ptr(), None, _address(scale), _address(bias), _TYPES[rows.dtype], term.zero, *_rounding(term)
    )
    wide = term.dtype == torch.float64
    found.spikezip_numbers(ctypes.addressof(packed), wide, rows.shape[0], neurons, period, out.data_ptr())
    return out


def _period(rows: Tensor, layout: torch.memory_format) -> int:
    """How many neurons are handled at once: whole repeats of the channels."""
    channels = rows.shape[1] if layout is torch.channels_last else rows.shape[-1] if rows.dim() > 1 else 1
    return channels * max(1, _STRIP // channels)


def _layout(terms: list[Rows]) -> torch.memory_format:
    """Channels fastest, wherever there are channels to tell apart."""
    for t in terms:
        if isinstance(t.scale, Tensor):
            return torch.channels_last if t.channels == 1 and t.rows.dim() == 4 else torch.contiguous_format
    last = terms[0].rows.dim() == 4 and terms[0].rows.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _rounding(term: Rows) -> tuple[float, float, float]:
    """What fixed point asks of a term: the factor before, steps per unit (0: no rounding), and the limit."""
    if term.grid is None:
        return 1.0, 0.0, 0.0
    exponent, limit = term.grid
    return (1.0 if term.scale is None else float(term.scale)), 2.0**exponent, float(limit)


def _repeated(values: Tensor | float | None, period: int, dtype: torch.dtype) -> Tensor | None:
    if values is None:
        return None
    if not isinstance(values, Tensor):
        return torch.full((period,), values, dtype=dtype)
    return values.to(dtype).expand(period // values.numel(), -1).reshape(-1)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
