"""Where a number came from: versions, commit, command, time."""

from __future__ import annotations

import datetime
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from spikezip.version import __version__


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    return {"spikezip": __version__, "torch": torch.__version__, "python": platform.python_version()}


def processor() -> str:
    """What the processor calls itself, its family and model where that is known, and which of its instructions torch
    uses."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
        name = facts["model name"]
        if "cpu family" in facts and "model" in facts:  # names of rented ones say little
            name += f" (family {facts['cpu family']}, model {facts['model']})"
    except (OSError, KeyError):
        name = platform.processor()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def commit() -> str | None:
    """The commit of the checkout this package runs from; None for an installed package. ``+`` marks local changes."""
    here = Path(__file__).resolve().parents[3]
    if not (here / ".git").exists():
        return None
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10
        )
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if head.returncode:
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def provenance(seed: int | None) -> dict[str, Any]:
    """Time, command line, seed, versions, commit and processor, as a record keeps them."""
    program = Path(sys.argv[0]) if sys.argv and sys.argv[0] else Path("python")
    called = ["python", "-m", program.parent.name] if program.name == "__main__.py" else [program.name]
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([*called, *map(_shown, sys.argv[1:])]),
        "seed": seed,
        "versions": versions(),
        "commit": commit(),
        "processor": processor(),
    }


def _shown(argument: str) -> str:
    """An argument without the folders of the machine it ran on: records are published."""
    return Path(argument).name if Path(argument).is_absolute() else argument
