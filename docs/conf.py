"""Sphinx configuration; pages made from results and from the command line's own help are written first."""

from __future__ import annotations

import re
import sys
from enum import Enum
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from generate import write_pages
from pydantic import BaseModel

from spikezip.version import __version__

write_pages(Path(__file__).parent / "generated")

project = "spikezip"
author = "the spikezip authors"
release = version = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "generated"]
html_theme = "furo"
html_title = f"spikezip {__version__}"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True, "exclude-members": "model_config"}
# The library's own roles point at names as users import them; a name without a page of its own is plain text.
nitpicky = False
html_static_path = ["static"]
html_css_files = ["pages.css"]
html_show_copyright = False
html_math_renderer = "mathml"  # drawn by the browser itself: no page needs the network
#: TeX that docutils' converter does not know.
_SPELT = (
    (r"\\iff\b", r"\\Longleftrightarrow"),
    (r"\\dots\b", r"\\ldots"),
    (r"\\textstyle\b", ""),
    (r"\\tfrac(\d)(\d)", r"\\tfrac{\1}{\2}"),
    (r"\\tag\{(\w+)\}", r"\\qquad (\1)"),
)


def _mathml(block: bool) -> Any:
    def visit(self: Any, node: Any) -> None:
        text = node.astext().strip()
        for tex, known in _SPELT:
            text = re.sub(tex, known, text)
        drawn = tex2mathml(text, as_block=block)
        self.body.append(f'<div class="math">{drawn}</div>' if block else drawn)
        raise nodes.SkipNode

    return visit


def _keys(app: Any, what: str, name: str, shown: Any, options: Any, signature: str, returned: str) -> Any:
    """A part of a recipe by its keys and defaults, as YAML has them; pydantic tells types at great length."""
    if not (isinstance(shown, type) and issubclass(shown, BaseModel)):
        return None
    keys = [
        key if field.is_required() else f"{key}={_plain(field.default)!r}" for key, field in shown.model_fields.items()
    ]
    return f"(*, {', '.join(keys)})", None


def _plain(default: Any) -> Any:
    if isinstance(default, BaseModel):
        return default.model_dump(mode="json", exclude_defaults=True)
    return default.value if isinstance(default, Enum) else default


def setup(app: Any) -> None:
    """Equations as MathML; recipes as YAML has them."""
    app.connect("autodoc-process-signature", _keys)
    app.add_html_math_renderer("mathml", (_mathml(block=False), None), (_mathml(block=True), None))
