"""Numbers to people: one HTML page, figures and tables, from ``record.json`` alone."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spikezip.report.figures.comparison import comparison
    from spikezip.report.page import write_report
    from spikezip.report.record import load_record

__all__ = ["comparison", "load_record", "write_report"]

_WHERE = {"comparison": "figures.comparison", "load_record": "record", "write_report": "page"}


def __getattr__(name: str) -> Any:
    # Found when first asked for: pydantic, Jinja2 and matplotlib are no price for `import spikezip`.
    if name in _WHERE:
        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
