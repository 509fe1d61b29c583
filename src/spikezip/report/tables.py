"""Tables that a person reads, copies as CSV (full precision) or as LaTeX (as shown)."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from spikezip.percent import percent as percentage

Cell = str | int | float | bool | None

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "θ": r"$\theta$",
    "≤": r"$\le$",
    "–": "--",
    "×": r"$\times$",
    "µ": r"\textmu{}",
    "—": "---",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}

_COUNTS = ((1e12, "T"), (1e9, "G"), (1e6, "M"))
_ENERGIES = ((1e12, "J"), (1e9, "mJ"), (1e6, "µJ"), (1e3, "nJ"), (1.0, "pJ"))


def latex_escape(text: str) -> str:
    """``text`` so that LaTeX sets it as it reads.

    >>> print(latex_escape("50 % of layer_1"))
    50 \\% of layer\\_1
    """
    return "".join(_LATEX.get(ch, ch) for ch in " ".join(text.split()))


def plain(value: Cell) -> str:
    """A value as a person writes it; an absent one is a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value


def counted(number: int, thing: str) -> str:
    """How many of a thing there are.

    >>> counted(1, "layer"), counted(19, "layer")
    ('1 layer', '19 layers')
    """
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def percent(value: Cell) -> str:
    """A share of 1 as a percentage (:func:`spikezip.percent.percent`); an absent one is a dash."""
    return percentage(value) if isinstance(value, (int, float)) else plain(value)


def compact(value: Cell) -> str:
    """A count with an SI prefix from a million on.

    >>> compact(1234), compact(61_600_000), compact(999_700_000), compact(0.5)
    ('1,234', '61.6 M', '1 G', '0.5')
    """
    if not isinstance(value, (int, float)):
        return plain(value)
    if abs(value) >= 1e6:
        return _in_unit(value, *_unit(value, _COUNTS))
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.3g}"


def energy(value: Cell) -> str:
    """Picojoules in the unit that reads best.

    >>> energy(1234.0), energy(5e7), energy(3.0), energy(2.5e12), energy(999_700)
    ('1.23 nJ', '50 µJ', '3 pJ', '2.5 J', '1 µJ')
    """
    if not isinstance(value, (int, float)):
        return plain(value)
    return _in_unit(value, *energy_unit(value))


def energy_unit(largest_pj: float) -> tuple[float, str]:
    """The unit for energies up to ``largest_pj``, and how many picojoules it holds."""
    return _unit(largest_pj, _ENERGIES)


def _unit(value: float, units: Sequence[tuple[float, str]]) -> tuple[float, str]:
    """The largest unit (they come largest first) that a value, rounded as it will be shown, holds once; or the last."""
    shown = abs(float(f"{value:.3g}"))
    return next((unit for unit in units if shown >= unit[0]), units[-1])


def _in_unit(value: float, factor: float, unit: str) -> str:
    scaled = value / factor
    return f"{scaled:,.0f} {unit}" if abs(scaled) >= 999.5 else f"{scaled:.3g} {unit}"


@dataclass(frozen=True)
class Column:
    """A column: its heading and how a value of it is shown."""

    title: str
    show: Callable[[Cell], str] = plain
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """Rows of raw values under columns.

    Args:
        title: what the table tells.
        columns: headings and formats.
        rows: raw values, as long as ``columns``.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]

    @classmethod
    def of(cls, title: str, columns: Iterable[str], rows: Iterable[Sequence[Cell]]) -> Table:
        """A table whose values are shown plainly (the data of a figure)."""
        return cls(title, [Column(name) for name in columns], [tuple(row) for row in rows])

    def shown(self) -> list[list[str]]:
        """The rows as text."""
        return [[column.show(value) for column, value in zip(self.columns, row, strict=True)] for row in self.rows]

    def csv(self) -> str:
        """Comma-separated values (RFC 4180 quoting), at full precision; an absent value is empty."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(column.title for column in self.columns)
        writer.writerows(
            ["" if v is None else repr(v) if isinstance(v, float) else v for v in row] for row in self.rows
        )
        return out.getvalue()

    def latex(self) -> str:
        """A ``booktabs`` table, with the values as shown on the page."""
        spec = "".join("r" if column.numeric else "l" for column in self.columns)
        lines = [
            "% needs \\usepackage{booktabs}",
            "\\begin{table}",
            "  \\centering",
            f"  \\caption{{{latex_escape(self.title)}}}",
            f"  \\begin{{tabular}}{{{spec}}}",
            "    \\toprule",
            "    " + " & ".join(latex_escape(column.title) for column in self.columns) + r" \\",
            "    \\midrule",
            *("    " + " & ".join(latex_escape(cell) for cell in row) + r" \\" for row in self.shown()),
            "    \\bottomrule",
            "  \\end{tabular}",
            "\\end{table}",
        ]
        return "\n".join(lines) + "\n"
