"use strict";
(() => {
  const root = document.documentElement;
  const toggle = document.getElementById("theme");
  const status = document.getElementById("status");
  const system = matchMedia("(prefers-color-scheme: dark)");

  // The choice is kept where the browser allows it (pages opened from disk may not store anything).
  const stored = () => { try { return localStorage.getItem("spikezip-theme"); } catch { return null; } };
  const store = (theme) => { try { localStorage.setItem("spikezip-theme", theme); } catch { /* not kept */ } };
  const current = () => root.dataset.theme || (system.matches ? "dark" : "light");
  const name = () => { toggle.textContent = current() === "dark" ? "Light" : "Dark"; };
  const asked = new URLSearchParams(location.search).get("theme") || stored();
  if (asked === "dark" || asked === "light") root.dataset.theme = asked;
  toggle.addEventListener("click", () => {
    root.dataset.theme = current() === "dark" ? "light" : "dark";
    store(root.dataset.theme);
    name();
  });
  system.addEventListener("change", name);
  name();
  toggle.hidden = false;

  const byHand = (text) => {
    const dialog = document.getElementById("by-hand");
    const area = dialog.querySelector("textarea");
    area.value = text;
    dialog.showModal();
    area.select();
  };
  const oldWay = (text) => {
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "off-screen";
    document.body.append(area);
    area.select();
    let done = false;
    try { done = document.execCommand("copy"); } catch { done = false; }
    area.remove();
    return done;
  };
  const copy = async (text) => {
    try { await navigator.clipboard.writeText(text); return true; } catch { return oldWay(text); }
  };
  // A figure as a file: the light palette in place of the page's variables, without what is drawn for the dark theme.
  const light = JSON.parse(document.body.dataset.light);
  const asFile = (svg) => {
    const copy = svg.cloneNode(true);
    for (const dark of copy.querySelectorAll(".only-dark")) dark.remove();
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    copy.setAttribute("width", `${svg.viewBox.baseVal.width}pt`);
    copy.setAttribute("height", `${svg.viewBox.baseVal.height}pt`);
    const text = new XMLSerializer().serializeToString(copy).replace(/var\(--font\)/g, "sans-serif");
    return text.replace(/var\(--([a-z0-9]+)\)/g, (whole, name) => light[name] || whole);
  };
  for (const button of document.querySelectorAll("button[data-file=svg]")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const link = document.createElement("a");
      const text = asFile(button.closest("figure").querySelector("svg"));
      link.href = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(text);
      link.download = `${button.dataset.name}.svg`;
      link.click();
    });
  }
  let fading;
  const say = (text) => {
    status.textContent = text;
    clearTimeout(fading);
    fading = setTimeout(() => { status.textContent = ""; }, 2500);
  };
  for (const box of document.querySelectorAll(".copy")) {
    box.hidden = false;
    box.addEventListener("click", async (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      const kind = button.dataset.copy;
      const text = box.querySelector(`template[data-kind=${kind}]`).content.textContent;
      if (await copy(text)) say(`Copied as ${kind === "csv" ? "CSV" : "LaTeX"}: ${box.dataset.name}`);
      else byHand(text);
    });
  }
})();
