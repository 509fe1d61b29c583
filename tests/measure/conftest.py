"""Tests in this folder import hand_networks.py by name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
