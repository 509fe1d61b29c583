"""Mutation testing: does a test fail for every small change of the code that exactness stands on?

    pip install cosmic-ray==8.7.0
    python experiments/mutation.py [--only NAME] [--again]

Every mutation of cosmic-ray's operators (another sign, comparison, constant, a negated condition, a missing decorator
...; arithmetic operators exchanged among + - * / // **) is made, one at a time, in levels.py, the ST-BIF neuron, the
LSQ quantizer and the folding of BatchNorm, and the tests of that file are run until one fails. Mutations of annotations
change no code and are left out. Each mutant runs in a process of its own, forked from one that has imported torch
already; nothing is written into the source tree.
Writes experiments/results/mutation.json; survivors are explained in docs/mutation.md.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "experiments" / "results" / "mutation.json"
SECONDS = 400  #: a mutant that takes longer (an endless loop) counts as killed

_ARITHMETIC = ("Add", "Sub", "Mul", "Div", "FloorDiv", "Pow")

#: The module, and the tests that must notice, the quickest first.
TARGETS = {
    "spikezip.levels": [
        "tests/quantize/test_levels.py",
        "tests/spike/test_spike.py",
        "tests/quantize/test_quantize.py",
        "tests/test_theorem.py",
    ],
    "spikezip.spike.neuron": [
        "tests/spike/test_neuron.py",
        "tests/spike/test_spike.py",
    ],
    "spikezip.quantize.quantizer": [
        "tests/quantize/test_quantizer.py",
        "tests/train/test_paths.py",
    ],
    "spikezip.morph.fold": ["tests/morph/test_fold.py"],
}

#: What takes long in a target's tests and depends on nothing that is mutated: done once, before.
PREPARED = {
    "spikezip.morph.fold": "from batch_norm_networks import NETWORKS, STANDING_ALONE, captured\n"
    "for name in [*NETWORKS, *STANDING_ALONE]: captured(name)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="one module, or a part of its name")
    parser.add_argument("--again", action="store_true", help="run every mutant again")
    parser.add_argument("--survivors", action="store_true", help="run those that survived once more")
    choices = parser.parse_args()
    _import_what_is_slow()
    from tqdm import tqdm

    found = json.loads(RESULT.read_text())["mutants"] if RESULT.exists() and not choices.again else {}
    for module, tests in TARGETS.items():
        if choices.only and choices.only not in module:
            continue
        path = ROOT / "src" / Path(*module.split(".")).with_suffix(".py")
        code = path.read_text()
        exec(PREPARED.get(module, ""), {})
        _forget(module)
        if outcome(module, code, tests) != "survived":
            sys.exit(f"The tests of {module} fail without any mutation: {' '.join(tests)}")
        wanted = dict(mutants(module, code))
        found = {key: row for key, row in found.items() if row["module"] != module or key in wanted}
        for key, mutant in tqdm(wanted.items(), desc=module, mininterval=30):
            if key in found and not (choices.survivors and found[key]["outcome"] == "survived"):
                continue
            began = time.perf_counter()
            told = next(
                (o for file in tests if (o := outcome(module, mutant, [file])) != "survived"),
                "survived",
            )
            found[key] = {
                "module": module,
                "outcome": told,
                "seconds": round(time.perf_counter() - began, 1),
                "change": "\n".join(changed(code, mutant)),
            }
            write(found)
    for key, row in found.items():
        if row["outcome"] == "survived":
            print(f"\n{key}\n{row['change']}")


def mutants(module: str, code: str) -> Iterator[tuple[str, str]]:
    """Name and source of every mutant that differs from the code in more than annotations."""
    from cosmic_ray import plugins
    from cosmic_ray.mutating import mutate_code

    plain = without_annotations(code)
    seen = {plain}
    for name in plugins.operator_names():
        kind = plugins.get_operator(name)
        if kind.arguments():
            continue  # these need names to be chosen for them
        if "BinaryOperator" in name and not all(part in _ARITHMETIC for part in name.split("_")[1:]):
            continue  # shifts and bits of floats raise: nobody would write them by mistake
        for occurrence in range(10_000):
            mutant = mutate_code(code, kind(), occurrence)
            if mutant is None:
                break
            try:
                bare = without_annotations(mutant)
            except SyntaxError:
                continue
            if bare not in seen:
                seen.add(bare)
                line = next(i for i, (a, b) in enumerate(zip(code.splitlines(), mutant.splitlines()), 1) if a != b)
                yield f"{module}:{line} {name.removeprefix('core/')} {occurrence}", mutant


def without_annotations(code: str) -> str:
    """The syntax tree of a module as text, without annotations and docstrings."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
                body[0].value = ast.Constant(None)
    return ast.dump(tree)


def outcome(module: str, code: str, tests: list[str]) -> str:
    """``killed``, ``survived`` or ``timeout``: what the tests say of a module with this source."""
    child = os.fork()
    if child == 0:
        os.setsid()
        code_of_exit = 1
        with contextlib.suppress(BaseException):
            code_of_exit = _run(module, code, tests)
        os._exit(code_of_exit)
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout"


def _run(module: str, code: str, tests: list[str]) -> int:
    import pytest

    sys.meta_path.insert(0, _Mutated(module, code))
    os.chdir(ROOT)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        # Plain asserts: rewriting them, and hypothesis's own, takes longer than most tests.
        return int(pytest.main(["-x", "-q", "--assert=plain", "-p", "no:xdist", "-p", "no:randomly", *tests]))


class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module another source."""

    def __init__(self, name: str, code: str):
        self.name, self.code = name, code
        self.path = str(ROOT / "src" / Path(*name.split(".")).with_suffix(".py"))

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)

    def exec_module(self, module: Any) -> None:
        exec(compile(self.code, self.path, "exec"), module.__dict__)


def changed(code: str, mutant: str) -> list[str]:
    """The lines that differ."""
    diff = difflib.unified_diff(code.splitlines(), mutant.splitlines(), lineterm="", n=0)
    return [line for line in diff if line[:1] in "+-" and line[:3] not in ("+++", "---")]


def write(found: dict[str, Any]) -> None:
    """Write the results; whole or not at all."""
    draft = RESULT.with_suffix(".part")
    draft.write_text(json.dumps({"format": "spikezip.mutation/1", **_provenance(), "mutants": found}, indent=1) + "\n")
    draft.replace(RESULT)


@functools.cache
def _provenance() -> dict[str, Any]:
    # In another process: spikezip must not be imported here, see _import_what_is_slow.
    asked = "import json; from spikezip.measure.provenance import provenance; print(json.dumps(provenance(None)))"
    told = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True, check=True)
    return {**json.loads(told.stdout), "command": "python experiments/mutation.py"}


def _forget(module: str) -> None:
    """Take a module, and all of spikezip that holds something of it, out of those that are imported."""
    loaded = {name: m for name, m in sys.modules.items() if name.partition(".")[0] == "spikezip"}
    stale = {module, "spikezip"}
    while more := {name for name, m in loaded.items() if name not in stale and _holds(m, stale)}:
        stale |= more
    for name in stale:
        sys.modules.pop(name, None)


def _holds(module: Any, stale: set[str]) -> bool:
    own = {getattr(v, "__module__", None) or getattr(v, "__name__", None) for v in vars(module).values()}
    names = {v.__name__ for v in vars(module).values() if isinstance(v, types.ModuleType)}
    return bool((own | names) & stale)


def _import_what_is_slow() -> None:
    """Everything but spikezip, which each mutant imports anew; and one export, as the first is the slow one."""
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
    import accelerate  # noqa: F401
    import hypothesis  # noqa: F401
    import pydantic  # noqa: F401
    import pytest  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch
    from torch import nn

    torch.set_num_threads(1)
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.ReLU()).eval()
    batch = ({0: torch.export.Dim.DYNAMIC},)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.export.export(network, (torch.zeros(2, 1, 2, 2),), dynamic_shapes=batch)
        program.run_decompositions({}).module(check_guards=False)


if __name__ == "__main__":
    main()
