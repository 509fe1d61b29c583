"""The Triton kernels in a process of their own: on the CPU, where Triton interprets them, and on a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("triton_cases.py")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs Triton: pip install 'spikezip[gpu]'"
)


@pytest.mark.parametrize("interpreted", ["1", pytest.param("0", marks=pytest.mark.gpu)], ids=["interpreter", "gpu"])
def test_triton_kernels(interpreted):
    environment = {**os.environ, "TRITON_INTERPRET": interpreted}  # read when Triton is imported
    call = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", str(CASES)]
    done = subprocess.run(call, cwd=CASES.parents[2], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


_TYPES = {"map": "*i64", "start": "*u8", "out": "*u8", "moves": "*i64", "late": "*i64", "grid": "*fp64"}


@pytest.mark.parametrize(
    ("rows", "wide", "switches"),
    [
        ("*fp32", False, {"SCALED", "BIASED"}),
        ("*fp32", False, {"SCALED", "BIASED", "SECOND", "DIVIDED"}),
        ("*u8", True, {"SCALED", "SECOND", "DIVIDED"}),
        ("*fp64", False, {"ROUNDED", "SECOND"}),
        ("*fp64", True, {"BIASED"}),
    ],
)
def test_it_compiles_for_a_gpu_and_contracts_nothing(rows, wide, switches, monkeypatch, tmp_path):
    """Without a GPU at hand: Triton's compiler takes the kernel, and ``a*b + c`` stays two roundings."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton

    from spikezip.kernels import triton_scan

    names = triton_scan._run.arg_names
    floats = "*fp64" if wide else "*fp32"
    constants = {name: name.removeprefix("X_").removeprefix("Y_") in switches for name in names if name.isupper()}
    constants |= {"WIDE": wide, "FLOAT": triton.language.float64 if wide else triton.language.float32, "BLOCK": 1024}

    def type_of(name: str) -> str:
        short = name.removeprefix("x_").removeprefix("y_")
        if name in ("x", "y"):
            return rows
        if short in ("scale", "bias", "theta"):
            return floats
        return "constexpr" if name in constants else _TYPES.get(short, "i32")

    compiled = _compiled(triton_scan._run, type_of, constants, {"enable_fp_fusion": False})
    assert ".entry" in compiled.asm["ptx"]
    assert "fma" not in compiled.asm["ptx"]
    assert compiled.asm["cubin"]


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 64), (512, 512), (16, 16)])
def test_sums_compile_for_a_gpu_and_use_its_units_for_bytes(inputs, outputs, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from spikezip.kernels import triton_synapse

    blocks = triton_synapse.shape_of(inputs, outputs)
    options = {name: blocks.pop(name) for name in ("num_warps", "num_stages")} | {"enable_fp_fusion": False}
    types = {"codes": "*i8", "weight": "*i8", "out": "*fp32"}

    def type_of(name: str) -> str:
        return "constexpr" if name in blocks else types.get(name, "i32")

    compiled = _compiled(triton_synapse._run, type_of, blocks, options, divided=(*types, "inputs", "outputs"))
    assert "s32.s8.s8" in compiled.asm["ptx"]
    assert compiled.asm["cubin"]


def _compiled(kernel, type_of, constants, options, divided=()):
    """A kernel as Triton compiles it for an H100, without one; ``divided`` are arguments that 16 divides."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: type_of(name) for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in divided},
    )
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
