"""What users and packagers rely on: the public names, the verbs, a light import, the one way imports fall."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

import spikezip
from spikezip.cli import app

ROOT = Path(__file__).resolve().parents[1]

PUBLIC = [
    "PET",
    "QAT",
    "SNN",
    "Activation",
    "Audit",
    "Certificate",
    "Constant",
    "EnergyModel",
    "Engine",
    "Even",
    "Levels",
    "Morph",
    "Outcome",
    "Plan",
    "Pooling",
    "Pulse",
    "Record",
    "Residual",
    "Run",
    "SpikezipError",
    "State",
    "audit",
    "calibrate",
    "capture",
    "convert",
    "finetune",
    "load",
    "measure",
    "morph",
    "quantize",
    "report",
    "spike",
    "to_integer",
    "verify",
]

VERBS = ["demo", "inspect", "convert", "train", "run", "verify", "report", "export", "bench"]

# Each of these takes from half a second to several, and most uses of the library need none of them.
HEAVY = ["torchvision", "timm", "matplotlib", "accelerate", "sklearn", "tensorboard", "pydantic", "typer", "rich"]


def _after_import(statement: str) -> list[str]:
    program = f"import sys, json; {statement}; print(json.dumps([n for n in {HEAVY} if n in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_importing_spikezip_is_light():
    assert _after_import("import spikezip") == []


def test_the_check_for_lightness_sees_heavy_imports():
    assert _after_import("import spikezip, matplotlib, rich") == ["matplotlib", "rich"]


def test_the_command_line_starts_light():
    assert _after_import("import spikezip.cli") in ([], ["typer", "rich"])


def test_public_names():
    assert sorted(spikezip.__all__, key=str.lower) == sorted([*PUBLIC, "__version__"], key=str.lower)
    missing = [name for name in spikezip.__all__ if not hasattr(spikezip, name)]
    assert missing == []


def test_verbs_and_their_help():
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0
    assert [verb.name for verb in app.registered_commands] == VERBS
    for verb in VERBS:
        own = CliRunner().invoke(app, [verb, "--help"])
        assert own.exit_code == 0
        assert "Example" in own.output, f"spikezip {verb} --help teaches by example"


def test_version_and_python_dash_m():
    done = subprocess.run([sys.executable, "-m", "spikezip", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"spikezip {spikezip.__version__}"
    assert f"\nversion: {spikezip.__version__}\n" in (ROOT / "CITATION.cff").read_text(), "what is cited"


def test_imports_fall_one_way():
    tool = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "3 kept, 0 broken" in done.stdout
