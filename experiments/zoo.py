"""Which published networks convert: every model of the zoo taken down the whole road, every claim checked.

    python experiments/zoo.py [--only NAME ...] [--again]

Each model (tests/zoo/zoo_models.py, and zoo_transformers.py where that library is installed) is captured, morphed,
quantized to 8 levels and run as an SNN on two random inputs, in floats (reference engine) and with 8-bit weights (sweep
and reference). Writes experiments/results/zoo.json, model by model; docs/zoo.md shows it. Models that are in the file
already are left out unless ``--again`` is given.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "zoo"))

from zoo_models import ZOO, ZooModel  # noqa: E402
from zoo_road import attempt  # noqa: E402
from zoo_transformers import INSTALLED, TRANSFORMERS  # noqa: E402

from spikezip.measure.provenance import provenance  # noqa: E402

RESULT = ROOT / "experiments" / "results" / "zoo.json"
MODELS: dict[str, ZooModel] = {m.name: m for m in (*ZOO, *TRANSFORMERS)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--only", nargs="*", default=[], help="names, or parts of names")
    parser.add_argument("--again", action="store_true", help="run models that have a result too")
    choices = parser.parse_args()
    rows = stored()
    names = list(MODELS)
    wanted = [n for n in names if any(part in n for part in choices.only)] if choices.only else names
    if not INSTALLED and (left_out := [n for n in wanted if n.startswith("transformers:") and n not in rows]):
        print(f"{len(left_out)} models of transformers are left out: pip install 'spikezip[zoo]' has them.")
        wanted = [n for n in wanted if n not in left_out]
    missing = [n for n in wanted if choices.again or n not in rows]
    for name in missing:
        row = run(name)
        rows = {**stored(), name: row}  # another process may have written its own
        write({n: rows[n] for n in names if n in rows})
        print(f"{name}: {summary(row)}", flush=True)


def stored() -> dict[str, Any]:
    """The rows there are."""
    return json.loads(RESULT.read_text())["models"] if RESULT.exists() else {}


def run(name: str) -> dict[str, Any]:
    """One model's row; a crash is a row too."""
    torch.set_num_threads(1)
    model = MODELS[name]
    start = time.perf_counter()
    try:
        row = attempt(model.network(), model.example())
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        row = {"crashed": f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"}
    return {**row, "seconds": round(time.perf_counter() - start, 1)}


def write(rows: dict[str, Any]) -> None:
    """Write the results; whole or not at all."""
    whole = {"format": "spikezip.zoo/1", **provenance(0), "levels": 8, "weight_bits": 8, "images": 2, "models": rows}
    draft = RESULT.with_suffix(".part")
    draft.write_text(json.dumps(whole, indent=1) + "\n")
    draft.replace(RESULT)


def summary(row: dict[str, Any]) -> str:
    """One row in a few words."""
    if "sound" not in row:
        return str(row)
    return f"{'equal' if row['sound'] else 'NOT EQUAL ' + str(row)}, T_eq {row['t_eq']}, {row['exactness']}"


if __name__ == "__main__":
    main()
