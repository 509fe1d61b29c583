"""Numbers to people: one HTML page, figures and tables, from ``record.json`` alone."""

from __future__ import annotations

from spikezip.report.page import write_report
from spikezip.report.record import load_record

__all__ = ["load_record", "write_report"]
