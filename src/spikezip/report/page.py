"""Records in, one HTML page (and figure files) out."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from spikezip.errors import OutputError
from spikezip.measure.saving import check_free, replacing
from spikezip.report import run_tables, summary
from spikezip.report.figures import ACROSS_RUNS, OF_A_RUN, Absent, Drawing, Run
from spikezip.report.record import load_record, parse_record
from spikezip.report.schema import Record
from spikezip.report.style import PALETTE, file_pdf, file_svg, house_style, inline_svg, theme_css
from spikezip.report.tables import Table

_SUBSCRIPT = re.compile(r"\bT_(eq|off)\b")
_TIES = re.compile(r" (?=%)| (?==)|(?<= =) (?=\d)")  # 98 %, t = 3
TALL = 1.25  # height of a figure, in widths, from which on it takes two rows
CELL = 30  # bytes of HTML around a cell of a table
BUDGET = 4_500_000  # bytes; the page is to stay under 5 MB, to be mailed and opened on a phone


@dataclass(frozen=True)
class Plate:
    """A drawing as the page shows it."""

    anchor: str
    title: str
    caption: str
    svg: str
    data: Table
    pdf: str
    tall: bool  #: as high as two others, beside which it stands


@dataclass(frozen=True)
class Group:
    """Figures and tables under one heading, figures that could not be drawn, what was not counted, and cautions."""

    title: str
    plates: Sequence[Plate] = ()
    absent: Sequence[Absent] = ()
    tables: Sequence[Table] = ()
    uncounted: Sequence[str] = ()
    cautions: Sequence[str] = ()
    said: str | None = None

    @property
    def how(self) -> list[str]:
        """How to have what is absent, each way once."""
        return list(dict.fromkeys(item.how for item in self.absent if item.how))


@dataclass(frozen=True)
class Section:
    """Everything about one run."""

    run: Run
    verdict: summary.Verdict
    story: str | None
    outcome: str | None
    figures: Sequence[summary.KeyFigure]
    groups: Sequence[Group]
    provenance: Sequence[tuple[str, str]]


def write_report(
    records: Sequence[Mapping[str, Any] | str | Path] | Mapping[str, Any] | str | Path,
    out: str | Path,
    *,
    figures: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Make one self-contained HTML page from one or several runs.

    The page needs no network, follows the reader's light or dark theme, and is the same, byte for byte, for the same
    records.

    Args:
        records: decoded records or paths of ``record.json`` (or of the folders holding them), in the order to show.
        out: the HTML file to write.
        figures: a folder to write every figure to as ``NAME.svg``, ``NAME.pdf`` and ``NAME.csv``; None for no files.
        overwrite: whether files that exist may be replaced.

    Returns:
        The path of the page.

    Raises:
        BundleError: a record is missing, truncated, foreign or malformed.
        OutputError: a file exists and ``overwrite`` is False, or cannot be written.

    Invariant: the page is written whole or not at all, and says nothing that the records do not.
    """
    if isinstance(records, (str, Path, Mapping)):
        records = [records]
    out, folder = Path(out), None if figures is None else Path(figures)
    runs = _runs(records)
    if out.is_dir():
        raise OutputError(f"{out} is a folder; name the file to write, for example {out / 'report.html'}.")
    check_free(out, overwrite)
    with house_style():
        shared = [d for make in ACROSS_RUNS for d in make(runs)]
        own = [[(title, [d for make in makers for d in make(run)]) for title, makers in OF_A_RUN] for run in runs]
        page = _page(runs, shared, own)
        files = {} if folder is None else _files(folder, runs, shared, own)
    for path in files:
        check_free(path, overwrite)
    for path, content in {**files, out: page.encode("utf-8")}.items():
        with replacing(path, parents=True) as draft:
            draft.write_bytes(content)
    return out


def _runs(records: Sequence[Mapping[str, Any] | str | Path]) -> list[Run]:
    if not records:
        raise OutputError("There are no records to report on. Give at least one record.json.")
    runs: list[Run] = []
    parsed = [
        parse_record(load_record(given) if isinstance(given, (str, Path)) else given, f"record {i} of {len(records)}")
        for i, given in enumerate(records, start=1)
    ]
    names = [record.name.strip() or "unnamed" for record in parsed]
    for given, record, title in zip(records, parsed, names, strict=True):
        if isinstance(given, (str, Path)) and names.count(title) > 1:  # their folders tell them apart
            place = Path(given)
            title = f"{title}, {(place if place.is_dir() else place.parent).resolve().name}"
        same = sum(r.title == title or r.title.startswith(f"{title} (") for r in runs)
        title = f"{title} ({same + 1})" if same else title
        slug = re.sub(r"[^a-z0-9]+", "-", title.lower())[:40].strip("-") or "run"
        while slug in {r.slug for r in runs}:
            slug += "-2"
        runs.append(Run(record, title, slug))
    return runs


def _plate(drawing: Drawing, slug: str) -> Plate:
    anchor = f"{slug}-{drawing.name}" if slug else drawing.name
    svg = inline_svg(drawing.figure, anchor, f"{drawing.title}. {drawing.caption}")
    pdf = base64.b64encode(file_pdf(drawing.figure)).decode()
    tall = drawing.figure.get_figheight() > TALL * drawing.figure.get_figwidth()
    return Plate(anchor, drawing.title, drawing.caption, svg, drawing.data, pdf, tall)


def _group(title: str, drawings: Sequence[Drawing | Absent], slug: str) -> Group:
    plates = [_plate(d, slug) for d in drawings if isinstance(d, Drawing)]
    return Group(title, plates, [d for d in drawings if isinstance(d, Absent)])


def _weight(group: Group) -> int:
    """About how many bytes of the page a group takes."""
    plates = sum(len(p.svg.encode()) + len(p.pdf) + 2 * len(p.data.csv().encode()) for p in group.plates)
    cells = sum(len(table.columns) * (len(table.rows) + 1) for table in group.tables)
    texts = sum(2 * len(table.csv().encode()) + len(table.latex().encode()) for table in group.tables)
    return plates + texts + CELL * cells


def _tabled(record: Record) -> list[Group]:
    """The groups of tables alone; that of the energy's goes below its figures."""
    ratios, exact = run_tables.ratio_table(record), run_tables.exactness_tables(record)
    uncounted = record.energy.uncounted if record.energy else ()
    cautions = record.energy.cautions if record.energy else ()
    tables = [*([ratios] if ratios else ()), *run_tables.energy_tables(record)]
    said = summary.energy_sentence(record)
    groups = [Group("Energy", tables=tables, uncounted=uncounted, cautions=cautions, said=said)]
    if audited := run_tables.audit_tables(record):
        groups.append(Group("Is it spike-driven?", tables=audited, said=summary.audit_sentence(record)))
    return [
        *groups,
        Group("Layer by layer", tables=run_tables.layer_tables(record), said=run_tables.layer_sentence(record)),
        Group("Certificate", tables=run_tables.certificate_tables(record)),
        Group("Number formats", tables=exact, said=summary.exactness_sentence(record)),
    ]


def _page(runs: Sequence[Run], shared: Sequence[Drawing | Absent], own: Sequence[Any]) -> str:
    import jinja2
    from markupsafe import Markup, escape

    curves = _group("Accuracy, and what it costs", [d for d in shared if not _further(d)], "")
    further = _group("By the other energy models", [d for d in shared if _further(d)], "")
    tabled = [_tabled(run.record) for run in runs]
    spent = _weight(curves) + _weight(further) + sum(_weight(group) for groups in tabled for group in groups)
    sections = []
    for run, titled, (energy, *others) in zip(runs, own, tabled, strict=True):
        record, groups = run.record, []
        for title, drawings in titled:
            group = _group(title, drawings, run.slug if len(runs) > 1 else "")
            weight = _weight(group)
            if spent + weight > BUDGET:
                why = "left out to keep this page small: report on this run alone to see it"
                group = Group(title, absent=[*(Absent(plate.title, why) for plate in group.plates), *group.absent])
            else:
                spent += weight
            if title == energy.title:
                group = replace(energy, plates=group.plates, absent=group.absent)
            groups.append(group)
        groups += others
        sections.append(
            Section(
                run,
                summary.verdict(record),
                summary.story(record),
                summary.outcome(record),
                summary.key_figures(record),
                groups,
                summary.provenance(record),
            )
        )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("spikezip.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["low"] = lambda text: Markup(_SUBSCRIPT.sub(r"T<sub>\1</sub>", _tied(str(escape(text)))))
    # Wrapped as Markup: text of our own, or SVG whose text ElementTree has escaped. All else is escaped by Jinja.
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.j2").render(
        title=runs[0].title if len(runs) == 1 else f"{len(runs)} runs compared",
        css=Markup(theme_css() + _asset("page.css")),
        script=Markup(script),
        script_hash=digest,
        light=json.dumps({name: pair[0] for name, pair in PALETTE.items()}),
        svg=lambda plate: Markup(plate.svg),
        several=len(runs) > 1,
        comparison=run_tables.comparison(runs) if len(runs) > 1 else None,
        ratios=run_tables.ratio_comparison(runs) if len(runs) > 1 else None,
        cautions=summary.cautions(runs),
        curves=curves,
        further=further,
        sections=sections,
    )


def _further(drawing: Drawing | Absent) -> bool:
    return isinstance(drawing, Drawing) and drawing.further


def _tied(text: str) -> str:
    """No line break between a number and its sign or its name."""
    return _TIES.sub("\N{NO-BREAK SPACE}", text)


def _asset(name: str) -> str:
    return (resources.files("spikezip.report") / "templates" / name).read_text(encoding="utf-8")


def _files(
    folder: Path, runs: Sequence[Run], shared: Sequence[Drawing | Absent], own: Sequence[Any]
) -> dict[Path, bytes]:
    named = {d.name: d for d in shared if isinstance(d, Drawing)}
    for run, titled in zip(runs, own, strict=True):
        prefix = f"{run.slug}-" if len(runs) > 1 else ""
        named.update({prefix + d.name: d for _, drawings in titled for d in drawings if isinstance(d, Drawing)})
    files: dict[Path, bytes] = {}
    for name, drawing in named.items():
        files[folder / f"{name}.svg"] = file_svg(drawing.figure)
        files[folder / f"{name}.pdf"] = file_pdf(drawing.figure)
        files[folder / f"{name}.csv"] = drawing.data.csv().encode("utf-8")
    return files
