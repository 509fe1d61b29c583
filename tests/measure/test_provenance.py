"""What a record says of the command that made it."""

from __future__ import annotations

import sys

import pytest
import torch

from spikezip.measure.provenance import provenance


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("/usr/local/bin/spikezip", "spikezip run a.spikezip"),
        ("/venv/lib/spikezip/__main__.py", "python -m spikezip run a.spikezip"),
        ("", "python run a.spikezip"),
    ],
)
def test_the_command_can_be_given_again_and_names_no_folder_of_the_machine(monkeypatch, program, said):
    monkeypatch.setattr(sys, "argv", [program, "run", "/home/someone/a.spikezip"])
    assert provenance(0)["command"] == said


def test_the_processor_is_named_with_its_instructions():
    # Float32's last bits, and so calibrated scales, depend on both.
    assert provenance(0)["processor"].endswith(torch.backends.cpu.get_cpu_capability())
