"""The page in a real browser: no console errors, legible at 1280 and 400 pixels in both themes, buttons that copy.

A copy of the page gets a probe script (its Content-Security-Policy would refuse one, so there it is taken out) that
writes what it measures into the document, to be read with ``--dump-dom``.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from urllib.parse import unquote

import pytest

from spikezip.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--v=0",
    "--virtual-time-budget=4000",
)
PROBE = """<script>addEventListener("load", async () => {
  const out = {width: innerWidth, scroll: document.documentElement.scrollWidth, small: [], outside: [], overlap: []};
  out.background = getComputedStyle(document.documentElement).backgroundColor;
  out.images = [...document.querySelectorAll("svg image")].map((i) => i.getBoundingClientRect().width > 0);
  for (const svg of document.querySelectorAll(".plate svg")) {
    const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    const boxes = [];
    for (const text of svg.querySelectorAll("text")) {
      const name = svg.closest("figure").id + ": " + text.textContent, box = text.getBoundingClientRect();
      if (parseFloat(getComputedStyle(text).fontSize) * scale < 8) out.small.push(name);
      if (box.left < 0 || box.right > innerWidth) out.outside.push(name);
      for (const [other, b] of boxes) {
        const wide = Math.min(box.right, b.right) - Math.max(box.left, b.left);
        const tall = Math.min(box.bottom, b.bottom) - Math.max(box.top, b.top);
        if (wide > 1 && tall > 0.4 * Math.min(box.height, b.height)) out.overlap.push(name + " | " + other);
      }
      boxes.push([text.textContent, box]);
    }
  }
  const pause = () => new Promise((done) => setTimeout(done, 50));
  const press = async (selector) => { document.querySelector(selector).click(); await pause(); };
  const clipboard = (write) => Object.defineProperty(
    navigator, "clipboard", {value: {writeText: write}, configurable: true});
  clipboard(async (text) => { out.csv = text; });
  await press("#accuracy button[data-copy=csv]");
  out.status = document.getElementById("status").textContent;
  clipboard(async (text) => { out.latex = text; });
  await press("button[data-copy=latex]");
  clipboard(() => Promise.reject(new Error("refused")));
  document.execCommand = () => { out.old = document.activeElement.value; return true; };
  await press("#accuracy button[data-copy=csv]");
  document.execCommand = () => false;
  await press("#accuracy button[data-copy=csv]");
  const dialog = document.getElementById("by-hand");
  out.hand = dialog.open ? dialog.querySelector("textarea").value : null;
  dialog.close();
  HTMLAnchorElement.prototype.click = function () { out.file = [this.download, this.href]; };
  await press("[id$=firing-rate] button[data-file=svg]");
  parent.postMessage(JSON.stringify(out), "*");
});</script>"""
# A window of Chromium is 500 pixels wide at least, a frame in it as narrow as one likes.
FRAME = """<!DOCTYPE html><script>
addEventListener("message", (event) => { document.documentElement.dataset.probe = event.data; });
</script><body style="margin:0">
<iframe style="border:0;width:%dpx;height:4000px" src="probed.html?theme=%s"></iframe>"""


def browse(folder, url: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        str(CHROMIUM),
        *OPTIONS,
        f"--user-data-dir={folder / 'profile'}",
        *options,
        url,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.fixture(scope="module")
def pages(tmp_path_factory, make_record):
    folder = tmp_path_factory.mktemp("browser")
    page = write_report([make_record()], folder / "report.html")
    text = re.sub(r"<meta http-equiv=.*?>", "", page.read_text(encoding="utf-8"))
    (folder / "probed.html").write_text(text.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    return folder


def test_the_page_as_shipped_runs_without_a_word_on_the_console(pages):
    done = browse(pages, f"file://{pages / 'report.html'}?theme=dark", "--dump-dom", "--window-size=1280,900")
    assert [line for line in done.stderr.splitlines() if ":CONSOLE" in line] == []
    assert 'data-theme="dark"' in done.stdout  # so its script passed its own content-security policy
    assert re.search(r'<button type="button" id="theme">Light</button>', done.stdout)


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_is_legible_and_copies(pages, width, theme):
    frame = pages / f"{theme}-{width}.html"
    frame.write_text(FRAME % (width, theme), encoding="utf-8")
    done = browse(pages, f"file://{frame}", "--dump-dom", "--window-size=1400,900")
    found = re.search(r'data-probe="([^"]*)"', done.stdout)
    assert found, done.stderr
    out = json.loads(html.unescape(found[1]))
    assert out["width"] == width
    assert out["scroll"] <= width
    assert out["small"] == []
    assert out["outside"] == []
    assert out["overlap"] == []
    assert out["background"] == {"light": "rgb(255, 255, 255)", "dark": "rgb(23, 27, 32)"}[theme]
    assert out["images"].count(True) * 2 == len(out["images"]) > 0  # of each pair the theme shows one
    assert out["csv"].startswith("run,t,snn,qann,ann\nresnet20,1,")
    assert out["latex"].startswith("% needs \\usepackage{booktabs}")
    assert out["status"] == "Copied as CSV: Accuracy against time"
    assert out["old"] == out["csv"]
    assert out["hand"] == out["csv"]
    name, link = out["file"]
    assert name == "firing-rate.svg"
    svg = unquote(link.partition(",")[2])
    assert ET.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert "only-light" in svg
    assert not re.search(r"only-dark|var\(", svg)  # as printed, in either theme


def test_several_runs_with_long_names_are_legible_on_a_phone(tmp_path, make_record):
    names = [f"trajectory for t=2 (8 epochs), {n} levels, even:2, and more of it" for n in (3, 4)]
    page = write_report([make_record(steps=8, layers=3, name=name) for name in names], tmp_path / "report.html")
    text = re.sub(r"<meta http-equiv=.*?>", "", page.read_text(encoding="utf-8"))
    (tmp_path / "probed.html").write_text(text.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME % (400, "light"), encoding="utf-8")
    done = browse(tmp_path, f"file://{tmp_path / 'frame.html'}", "--dump-dom", "--window-size=1400,900")
    found = re.search(r'data-probe="([^"]*)"', done.stdout)
    assert found, done.stderr
    out = json.loads(html.unescape(found[1]))
    assert out["scroll"] <= 400
    assert out["small"] == out["outside"] == out["overlap"] == []


def test_it_prints(pages):
    target = pages / "report.pdf"
    browse(pages, f"file://{pages / 'report.html'}?theme=dark", f"--print-to-pdf={target}")
    assert target.read_bytes().startswith(b"%PDF")
