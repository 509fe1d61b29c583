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
