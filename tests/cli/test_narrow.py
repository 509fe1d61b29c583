"""A narrow terminal cuts no name: neither options nor layers."""

from __future__ import annotations

import json

import pytest
import typer.main

from spikezip.cli import app, screen

GROUP = typer.main.get_command(app)
VERBS = {(): GROUP, **{(name,): verb for name, verb in GROUP.commands.items()}}  # type: ignore[attr-defined]


@pytest.fixture
def narrow(spikezip, monkeypatch):
    monkeypatch.setattr(screen.stdout, "width", 40)
    monkeypatch.setenv("COLUMNS", "40")
    return spikezip


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_names_every_option(narrow, verb):
    done = narrow(*verb, "--help")
    assert done.exit_code == 0
    words = done.stdout.replace(",", " ").split()
    for param in VERBS[verb].params:
        assert {*param.opts, *param.secondary_opts} - {param.name} <= set(words)
    assert "…" not in done.stdout
    assert "[bold]" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 40


def test_inspect_names_every_place(narrow):
    told = narrow("inspect", "spikezip:digits").stdout.splitlines()
    places = json.loads(narrow("inspect", "spikezip:digits", "--json").stdout)["places"]
    assert [line for line in told if line in {place["name"] for place in places}] == [p["name"] for p in places]
    assert "  what becomes of it: neuron block.relu1, codes 0..7" in told
