"""Numbers to people: one HTML page, figures and tables, from ``record.json`` alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spikezip.report.page import write_report
    from spikezip.report.record import load_record

__all__ = ["load_record", "write_report"]


def __getattr__(name: str) -> Any:
    # Found when first asked for: pydantic, Jinja2 and matplotlib are no price for `import spikezip`.
    if name == "write_report":
        from spikezip.report.page import write_report

        return write_report
    if name == "load_record":
        from spikezip.report.record import load_record

        return load_record
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
