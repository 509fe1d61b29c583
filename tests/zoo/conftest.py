"""The zoo's networks and roads are plain modules of this folder, used by experiments/zoo.py too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
