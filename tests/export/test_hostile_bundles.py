"""Bundles made to do harm: each gives a BundleError that says what is wrong, and nothing else."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_nets import Parts, loads_or_is_refused, refused
from forgeries import HEADER, node

from spikezip.errors import BundleError
from spikezip.export import load_bundle
from spikezip.export.vocabulary import target_named
from spikezip.spike import SpikingNetwork


def test_names_of_mutations_are_different():
    assert len({name for name, *_ in HEADER}) == len(HEADER) >= 60


@pytest.mark.parametrize(("mutate", "match"), [m[1:] for m in HEADER], ids=[m[0] for m in HEADER])
def test_forged_header(take_apart: Callable[[], Parts], tmp_path: Path, mutate: Callable[[Parts], Any], match: str):
    parts = take_apart()
    mutate(parts)
    parts.write(tmp_path / "forged.spikezip")
    refused(tmp_path / "forged.spikezip", match)


def test_the_untouched_parts_load(take_apart: Callable[[], Parts], tmp_path: Path, small: SpikingNetwork, images):
    """What refuses the mutations is the mutation, not how these tests put a bundle together."""
    take_apart().write(tmp_path / "same.spikezip")
    loaded = load_bundle(tmp_path / "same.spikezip")
    assert isinstance(loaded, SpikingNetwork)
    assert torch.equal(loaded.qann(images)[0], small.qann(images)[0])


def test_a_harmless_node_more_loads(take_apart: Callable[[], Parts], tmp_path: Path):
    parts = take_apart()
    node("aten.full.default", [10, 10], {"float": "-inf"}, dtype={"dtype": "float64"}, device={"device": "cpu"})(parts)
    parts.write(tmp_path / "more.spikezip")
    assert isinstance(load_bundle(tmp_path / "more.spikezip"), SpikingNetwork)


def test_an_unsigned_change_is_seen(take_apart: Callable[[], Parts], tmp_path: Path):
    parts = take_apart()
    parts.document["notes"].append(["harmless", 1])
    parts.write(tmp_path / "a.spikezip", sign=False)
    refused(tmp_path / "a.spikezip", "its header is damaged")


def test_no_file_is_touched_by_a_hostile_bundle(take_apart: Callable[[], Parts], tmp_path: Path):
    victim = tmp_path / "victim"
    parts = take_apart()
    code = f"y=open({str(victim)!r}, 'w')"
    row = {"op": "placeholder", "name": "y", "target": code, "args": [], "kwargs": {}, "origin": ""}
    parts.document["nodes"].insert(0, row)
    parts.document["inputs"] *= 2
    parts.write(tmp_path / "a.spikezip")
    refused(tmp_path / "a.spikezip", "no identifier")
    assert not victim.exists()


def test_operations_of_the_vocabulary_are_pure():
    """Nothing in the list of what is allowed may write to its operands, or take what only pointers can be."""
    allowed = []
    for schema in torch._C._jit_get_all_schemas():
        if schema.name.startswith("aten::"):
            name = f"{schema.name.replace('::', '.')}.{schema.overload_name or 'default'}"
            try:
                allowed.append(target_named(name))
            except BundleError:
                continue
    assert len(allowed) > 300
    assert not [op for op in allowed if op._schema.is_mutable]
    kinds = {str(a.type) for op in allowed for a in op._schema.arguments}
    assert not [k for k in kinds if any(word in k for word in ("Storage", "Stream", "Any", "Dict", "PyObject"))], kinds


_WORDS = [
    None, True, -1, 0, 1, 2, 7, 2**31, 2**62, -(2**63), 0.5, 1e300, "", "relu", "none", [], [0], [1, 2], [-1], {},
    {"node": "turn"}, {"node": "relu"}, {"tuple": [1, 2]}, {"dtype": "float64"}, {"dtype": "bool"}, {"float": "inf"},
    {"slice": [None, None, 2]}, {"layout": "strided"}, {"memory_format": "channels_last"}, {"device": "cpu"},
    {"dict": {"a": 1}}, "aten.relu.default", "aten.matmul.default", "aten.sum.dim_IntList", "aten.reshape.default",
    "aten.split.Tensor", "aten.cat.default", "aten.index.Tensor", "operator.getitem", "operator.mul",
]  # fmt: skip


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a document."""
    found: list[tuple[Any, Any]] = []
    todo = [value]
    while todo:
        here = todo.pop()
        pairs = here.items() if isinstance(here, dict) else enumerate(here) if isinstance(here, list) else ()
        for key, child in pairs:
            found.append((here, key))
            todo.append(child)
    return found


def test_forged_at_random(take_apart: Callable[[], Parts], tmp_path: Path):
    """Any value of the header replaced by any word of its language, or by another of its values, and signed anew."""
    dice = random.Random(11)
    path = tmp_path / "forged.spikezip"
    original = json.dumps(take_apart().document)
    tensors = take_apart().tensors
    loaded = 0
    for _ in range(300):
        parts = Parts(json.loads(original), tensors)
        places = _places(parts.document["nodes"]) if dice.random() < 0.8 else _places(parts.document)
        for _ in range(dice.randint(1, 2)):
            container, key = dice.choice(places)
            other, name = dice.choice(places)
            word = other[name] if dice.random() < 0.5 else dice.choice(_WORDS)
            container[key] = json.loads(json.dumps(word))
        parts.write(path)
        loaded += loads_or_is_refused(path)
    assert 0 < loaded < 200, "some forgeries are networks too; most are not"
