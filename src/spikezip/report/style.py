"""How figures look: one palette for both themes, matplotlib without global state, SVG that follows the page.

Figures are drawn once, in the light palette. For the page each palette colour becomes a CSS variable (``var(--ink)``),
so that the theme can change without drawing again; for SVG and PDF files the light colours stay.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# name: (on light, on dark). Series s1..s6 follow Okabe & Ito's colour-blind-safe palette, darkened or lightened where
# the contrast with the background was under 3:1.
PALETTE = {
    "ink": ("#1f2328", "#e6e9ed"),
    "muted": ("#5a6370", "#a2abb8"),
    "grid": ("#e3e6ea", "#2f363f"),
    "surface": ("#ffffff", "#171b20"),
    "s1": ("#0072b2", "#5ab4f0"),
    "s2": ("#d55e00", "#ff9350"),
    "s3": ("#008763", "#3fd1a4"),
    "s4": ("#a64d86", "#e79ccb"),
    "s5": ("#a37300", "#f0c14b"),
    "s6": ("#2f9bd6", "#a8daf8"),
}
# Heat maps: more is further from the background, in either theme.
RAMPS = {
    "light": ("#f2f5f8", "#b5d3e7", "#5aa2cf", "#1a6aa8", "#08305c"),
    "dark": ("#20262d", "#1d4a6e", "#2f7fb5", "#7dbbe6", "#e4f3ff"),
}
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
WIDTH = 420.0

_LIGHT_TO_VARIABLE = {light: f"var(--{name})" for name, (light, _) in PALETTE.items()}
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_SUBSCRIPT = re.compile(r"T_(eq|off)\b(.*)", re.DOTALL)
_SETTINGS = {
    "axes.edgecolor": PALETTE["muted"][0],
    "axes.labelcolor": PALETTE["ink"][0],
    "axes.labelsize": 11,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11,
    "grid.color": PALETTE["grid"][0],
    "grid.linewidth": 0.8,
    "image.composite_image": False,
    "legend.fontsize": 10.5,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "lines.linewidth": 1.8,
    "pdf.fonttype": 42,
    "svg.hashsalt": "spikezip",
    "text.color": PALETTE["ink"][0],
    "text.parse_math": False,  # names come from users' models: a "$" in one is no formula
    "xtick.color": PALETTE["muted"][0],
    "ytick.color": PALETTE["muted"][0],
    "xtick.labelcolor": PALETTE["ink"][0],
    "ytick.labelcolor": PALETTE["ink"][0],
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
}


def colour(name: str) -> str:
    """The light colour of a palette name; the page turns it into ``var(--name)``."""
    return PALETTE[name][0]


def series_style(index: int) -> dict:
    """Colour, dash pattern and marker of the ``index``-th run: told apart by more than the hue."""
    hues = ("s1", "s2", "s3", "s4", "s5", "s6")
    return {
        "color": colour(hues[index % len(hues)]),
        "linestyle": DASHES[(index // len(hues)) % len(DASHES)],
        "marker": "osD^vP"[index % 6],
    }


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in spikezip's style; the user's own matplotlib settings and backend are left as they are."""
    import matplotlib
    import matplotlib.style

    with matplotlib.style.context(["default", _SETTINGS]), warnings.catch_warnings():
        # A layer may bear a name in a script that DejaVu lacks; the reader's browser has a font for it.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        warnings.filterwarnings("ignore", message=r".*Matplotlib currently does not support")
        yield


def new_figure(height: float = 290.0) -> Figure:
    """An empty figure, as wide as a column of the page; ``height`` in the same units (1/72 inch)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
    figure.get_layout_engine().set(w_pad=4 / 72, h_pad=4 / 72)  # type: ignore[union-attr]
    return figure


def label(text: str, limit: int = 24) -> str:
    """A name fit for a figure: one line, printable, cut in the middle where it is long.

    >>> label("features.stages.3.blocks.17.mlp.fc1", 16)
    'features…mlp.fc1'
    """
    text = "".join(ch if ch.isprintable() else "�" for ch in text)
    if len(text) <= limit:
        return text
    return text[: limit // 2] + "…" + text[-(limit - limit // 2 - 1) :]


def _render(figure: Figure, kind: str, **settings: str) -> bytes:
    import matplotlib

    out = io.BytesIO()
    stamp = {"svg": "Date", "pdf": "CreationDate"}[kind]
    with matplotlib.rc_context(settings):  # type: ignore[arg-type]
        figure.savefig(out, format=kind, metadata={stamp: None})
    figure.set_layout_engine("none")  # it has been laid out: not again for the next format
    return out.getvalue()


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as SVG to put into the page: themed, small, with ids that no other figure uses.

    Args:
        figure: drawn in the light palette.
        name: unique on the page; prefixes the ids.
        description: read out by screen readers.
    """
    root = ET.fromstring(_render(figure, "svg", **{"svg.fonttype": "none"}))
    nodes = list(root.iter())
    wanted = {
        target
        for node in nodes
        for value in node.attrib.values()
        for target in [*_REFERENCE.findall(value), *([value[1:]] if value.startswith("#") else [])]
    }
    for node in nodes:
        node.tag = node.tag.rpartition("}")[2]
        attributes = {}
        for key, value in node.attrib.items():
            key = key.rpartition("}")[2]
            if key == "id":
                if value.startswith("only-"):
                    attributes["class"] = value.rpartition("-")[0]
                elif value in wanted:
                    attributes["id"] = f"{name}-{value}"
                continue
            if key == "href" and value.startswith("#"):
                value = f"#{name}-{value[1:]}"
            value = _REFERENCE.sub(rf"url(#{name}-\1)", value)
            # Colours as CSS: a var() works in a style, not in a presentation attribute; matplotlib writes styles.
            if key == "style":
                value = _COLOUR.sub(lambda m: _LIGHT_TO_VARIABLE.get(m[0].lower(), m[0]), value)
                value = re.sub(r"'DejaVu Sans', .*?(?=;|$)", "var(--font)", value)
            attributes[key] = value
        node.attrib.clear()
        node.attrib.update(attributes)
        _lower_subscript(node)
        if node.tag != "text" and node.tag != "tspan" and node.text and not node.text.strip():
            node.text = None
        if node.tail and not node.tail.strip():
            node.tail = None
    for parent in nodes:
        for child in list(parent):
            if child.tag in ("metadata", "style"):  # a "*{...}" rule would reach out of the figure
                parent.remove(child)
    for key in ("width", "height"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", description)
    return ET.tostring(root, encoding="unicode")


def _lower_subscript(node: ET.Element) -> None:
    """Set T_eq and T_off with a subscript, where a text starts with one."""
    match = _SUBSCRIPT.match(node.text or "") if node.tag == "text" else None
    if match:
        node.text = "T"
        low = ET.SubElement(node, "tspan", {"dy": "2.5", "font-size": "80%"})
        low.text = match[1]
        rest = ET.SubElement(node, "tspan", {"dy": "-2.5"})
        rest.text = match[2]


def file_svg(figure: Figure) -> bytes:
    """The figure as an SVG file: light colours, text as paths, so that it looks the same anywhere."""
    with _without_dark(figure):
        return _render(figure, "svg", **{"svg.fonttype": "path"})


def file_png(figure: Figure) -> bytes:
    """The figure as a PNG file on white, for pages that show no SVG."""
    out = io.BytesIO()
    with _without_dark(figure):
        figure.savefig(out, format="png", dpi=144, facecolor="white", metadata={"Software": None})
    return out.getvalue()


def file_pdf(figure: Figure) -> bytes:
    """The figure as a PDF file: light colours, embedded fonts."""
    with _without_dark(figure):
        return _render(figure, "pdf")


@contextmanager
def _without_dark(figure: Figure) -> Iterator[None]:
    dark = [a for a in figure.findobj() if (a.get_gid() or "").startswith("only-dark")]
    for artist in dark:
        artist.set_visible(False)
    yield
    for artist in dark:
        artist.set_visible(True)


def theme_css() -> str:
    """The palette as CSS variables: by the reader's system, or as chosen with the toggle; print is light."""
    blocks = ["".join(f"--{name}:{pair[i]};" for name, pair in PALETTE.items()) for i in (0, 1)]
    light = f"{{color-scheme:light;{blocks[0]}}}"
    dark = f"{{color-scheme:dark;{blocks[1]}}}"
    show_dark, hide_dark = ".only-light{display:none}", ".only-dark{display:none}"
    system, chosen = ":root:not([data-theme=light])", ":root[data-theme=dark]"
    return (
        f":root{light}{hide_dark}\n"
        f"@media screen and (prefers-color-scheme:dark){{{system}{dark}{system} .only-dark{{display:inline}}"
        f"{system} {show_dark}}}\n"
        f"@media screen{{{chosen}{dark}{chosen} .only-dark{{display:inline}}{chosen} {show_dark}}}\n"
    )
