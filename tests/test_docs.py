"""What the pages show is run: every Python block that stands by itself."""

from __future__ import annotations

import importlib.util
import operator
import re
from pathlib import Path

import pytest

import spikezip
from spikezip.train.plan import Plan
from spikezip.train.recipe import Recipe

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = [
    "quickstart.md",
    "road.md",
    "pet.md",
    "trajectory.md",
    "early-exit.md",
    "energy.md",
    "why-st-bif.md",
    "troubleshooting.md",
]


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks, f"{page} shows no Python"
    names: dict = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    if "cert" in names:
        assert names["cert"].equal


def test_every_page_is_in_the_table_of_contents():
    listed = set(re.findall(r"^([a-z-]+)$", (DOCS / "index.md").read_text(), re.MULTILINE))
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    assert pages == listed


def test_the_readme_shows_the_figures_of_the_results():
    place = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert place and place.loader
    generate = importlib.util.module_from_spec(place)
    place.loader.exec_module(generate)
    text = (DOCS.parent / "README.md").read_text()
    assert generate.readme(text) == text, "run: python docs/generate.py"


def test_a_dotted_name_on_a_page_is_there_once_spikezip_is_imported():
    # Functions of the top level hide the packages of their name: spikezip.morph.RULES is an attribute of a function.
    for page in [DOCS.parent / "README.md", *DOCS.glob("*.md")]:
        for name in re.findall(r"`(spikezip(?:\.[A-Za-z_]\w*)+)(?:\(.*?\))?`", page.read_text()):
            assert operator.attrgetter(name.partition(".")[2])(spikezip), f"{page.name}: {name}"


def test_every_key_of_a_recipe_is_in_the_reference():
    modules = re.findall(r"^\.\. automodule:: (spikezip\.train\.\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert {"spikezip.train.recipe", "spikezip.train.plan", "spikezip.train.loss"} <= set(modules)
    told = f"{Recipe.__doc__}{Plan.__doc__}"
    assert not [key for key in Recipe.model_fields if not re.search(rf"^ +{key}: ", told, re.MULTILINE)]
