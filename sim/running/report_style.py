"""How a report looks, and the little that moves in it: a line through all charts under the pointer.

Colours are variables, once for light and once for dark; charts use classes only. The blue, orange and
red of outcomes differ in lightness too, so that they can be told apart without seeing colours.
"""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b2430; --soft: #5d6b7c; --faint: #dfe4ea; --edge: #e6eaef;
  --sea: #eaf1f7; --land: #d3dccf; --way: #8aa0b8; --used: #4777b8;
  --good: #3b7dd8; --late: #f0a73a; --failed: #d2385a; --ok: #1f8a5b;
  --p50: #2f6fd0; --p90: #8b5fc7; --p99: #d2385a; --alive: #dcebe3; --suspect: #f0a73a; --dead: #d2385a;
  --left: #93a0ae; --frozen: #7fb6d9; --down: #39424e; --mark: #b0552f;
  --heat: 47, 111, 208;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #11161c; --card: #19212a; --ink: #e6ebf1; --soft: #94a3b4; --faint: #2b3642; --edge: #26303b;
    --sea: #16212d; --land: #2b3a37; --way: #4f647c; --used: #6aa0ea;
    --good: #4f92ee; --late: #e8a53e; --failed: #f0597a; --ok: #4cc38a;
    --p50: #62a0f5; --p90: #b48ef0; --p99: #f0597a; --alive: #1f3530; --left: #6b7987; --down: #05080b;
    --frozen: #4b86ab; --mark: #e59a6f; --heat: 98, 160, 245;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 27px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -.01em; }
h2 { font-size: 17px; margin: 0 0 4px; } h3 { font-size: 15px; margin: 18px 0 4px; }
p { margin: 4px 0 10px; max-width: 78ch; } .story { color: var(--soft); }
code, .mono { font: 13px/1.4 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
header, section { background: var(--card); border: 1px solid var(--edge); border-radius: 12px;
  padding: 20px 22px; margin-bottom: 16px; }
.banner { display: inline-block; font-weight: 650; border-radius: 999px; padding: 3px 14px; margin-bottom: 12px; }
.banner.yes { background: color-mix(in srgb, var(--ok) 18%, transparent); color: var(--ok); }
.banner.no { background: color-mix(in srgb, var(--failed) 18%, transparent); color: var(--failed); }
.facts { display: flex; flex-wrap: wrap; gap: 4px 22px; padding: 0; margin: 10px 0; list-style: none; color: var(--soft); }
.facts li:empty { display: none; } .facts b { color: var(--ink); font-weight: 600; }
.replay { display: flex; gap: 8px; align-items: center; flex-wrap: wrap; }
.replay code { background: var(--page); border: 1px solid var(--edge); border-radius: 7px; padding: 5px 10px; overflow-wrap: anywhere; }
button { font: inherit; font-size: 13px; border: 1px solid var(--edge); background: var(--page); color: var(--soft);
  border-radius: 7px; padding: 3px 10px; cursor: pointer; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(122px, 1fr)); gap: 10px; margin: 14px 0 2px; }
.tile { border: 1px solid var(--edge); border-radius: 10px; padding: 10px 13px; }
.tile .value { font-size: 22px; font-weight: 650; letter-spacing: -.01em; font-variant-numeric: tabular-nums; display: block; }
.tile .what { color: var(--soft); font-size: 13px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { text-align: right; padding: 5px 10px; border-bottom: 1px solid var(--edge); vertical-align: top; }
thead th { color: var(--soft); font-weight: 500; font-size: 13px; } tbody th { font-weight: 600; }
th:first-child, td:first-child, .words td, .words th { text-align: left; }
td.best { color: var(--ok); font-weight: 650; }
.yes-text { color: var(--ok); font-weight: 600; } .no-text { color: var(--failed); font-weight: 600; }
.violation { border-left: 4px solid var(--failed); padding: 2px 0 2px 14px; margin: 8px 0; overflow-wrap: anywhere; }
pre { overflow-x: auto; background: var(--page); border: 1px solid var(--edge); border-radius: 8px; padding: 12px; margin: 8px 0;
  font: 12.5px/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
details > summary { cursor: pointer; font-weight: 600; } details { margin-top: 10px; } details.run { margin-bottom: 16px; }
details.run > summary { padding: 8px 4px; font-size: 17px; }
.key { color: var(--soft); font-size: 13px; }
.swatch { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin: 0 5px 0 10px; vertical-align: -1px; }
.key .swatch:first-child { margin-left: 0; } .key .said { margin-right: 4px; }
.swatch.good { background: var(--good); } .swatch.late { background: var(--late); } .swatch.failed { background: var(--failed); }
.swatch.p50 { background: var(--p50); } .swatch.p90 { background: var(--p90); } .swatch.p99 { background: var(--p99); }
.swatch.alive { background: var(--alive); } .swatch.suspect { background: var(--suspect); } .swatch.dead { background: var(--dead); }
.swatch.left { background: var(--left); } .swatch.down { background: var(--down); } .swatch.frozen { background: var(--frozen); }
.swatch.heat0 { background: rgba(var(--heat), .07); } .swatch.heat5 { background: rgba(var(--heat), .5); }
.swatch.heat9 { background: rgb(var(--heat)); }
svg { display: block; width: 100%; height: auto; } svg text { font: 11.5px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: var(--soft); }
.chart .grid { stroke: var(--faint); stroke-width: .7; } .chart .grid.strong { stroke-width: 1.3; }
.tick.end, .row.end { text-anchor: end; } .tick.middle { text-anchor: middle; } text.row { fill: var(--ink); } text.small { font-size: 8.5px; }
.series { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.series.p50 { stroke: var(--p50); } .series.p90 { stroke: var(--p90); stroke-width: 1.1; } .series.p99 { stroke: var(--p99); }
.band { fill: var(--p50); opacity: .08; }
.fill.good { fill: var(--good); } .fill.late { fill: var(--late); } .fill.failed { fill: var(--failed); }
line.mark { stroke: var(--mark); stroke-width: 1.5; } line.mark.undone { stroke-dasharray: 2 3; }
text.mark { fill: var(--mark); font-weight: 600; }
.cell.down, .truth.down { fill: var(--down); } .cell.frozen, .truth.frozen { fill: var(--frozen); }
.cell.left, .truth.left { fill: var(--left); } .truth.up { fill: var(--ok); opacity: .55; }
rect.alive { fill: var(--alive); } .opinion.suspect { fill: var(--suspect); } .opinion.dead { fill: var(--dead); } .opinion.left { fill: var(--left); }
.cursor { stroke: var(--ink); stroke-width: 1; opacity: .55; } .cursor[hidden] { display: none; }
.map .sea { fill: var(--sea); } .map .land { fill: var(--land); } .map .grid { stroke: var(--faint); stroke-width: .6; fill: none; }
.map { border-radius: 8px; } .way { fill: none; stroke: var(--way); stroke-dasharray: 3 4; } .way.used { stroke: var(--used); stroke-dasharray: none; opacity: .75; }
.region { fill: var(--card); stroke: var(--way); stroke-width: 1.5; } .ring { fill: none; stroke-width: 6; }
.ring.good { stroke: var(--good); } .ring.late { stroke: var(--late); } .ring.failed { stroke: var(--failed); }
.hit { fill: none; stroke: var(--failed); stroke-width: 1.6; stroke-dasharray: 4 3; }
.map text.count { text-anchor: middle; font-weight: 700; fill: var(--ink); } .map text.name { font-weight: 650; font-size: 13px; fill: var(--ink); }
.map text.middle { text-anchor: middle; } .map text.end { text-anchor: end; } .halo { paint-order: stroke; stroke: var(--sea); stroke-width: 4px; stroke-linejoin: round; }
#tip { position: fixed; pointer-events: none; background: var(--ink); color: var(--page); border-radius: 8px; padding: 6px 10px;
  font-size: 12.5px; line-height: 1.4; white-space: pre; z-index: 9; font-variant-numeric: tabular-nums; } #tip[hidden] { display: none; }
.line0 { stroke: var(--p50); background: var(--p50); } .line1 { stroke: var(--late); background: var(--late); }
.line2 { stroke: var(--failed); background: var(--failed); } .line3 { stroke: var(--ok); background: var(--ok); }
.line4 { stroke: var(--p90); background: var(--p90); } .line5 { stroke: #2aa5b5; background: #2aa5b5; }
.line6 { stroke: #a2743b; background: #a2743b; } .line7 { stroke: #d470b8; background: #d470b8; }
.line8 { stroke: #8a9a2f; background: #8a9a2f; } .line9 { stroke: var(--left); background: var(--left); }
.bar { height: 5px; border-radius: 3px; background: var(--good); opacity: .75; min-width: 2px; margin-left: auto; }
footer { color: var(--soft); font-size: 13px; padding: 4px 6px; }
@media print {
  body { background: #fff; font-size: 12px; } main { max-width: none; padding: 0; }
  header, section { border: 0; padding: 6px 0; break-inside: avoid; } button, #tip { display: none; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
""" + "\n".join(
    f".cell.heat{level} {{ fill: rgba(var(--heat), {0.07 + level * 0.103:.2f}); }}"
    for level in range(10)
)
"""The style sheet."""

SCRIPT: Final = """
"use strict";
(() => {
  const tip = document.getElementById("tip");
  const left = __LEFT__, plot = __PLOT__, width = __WIDTH__;
  const clock = s => s < 120 ? s.toFixed(1) + " s" : Math.floor(s / 60) + ":" + String(Math.floor(s % 60)).padStart(2, "0");
  const place = event => {
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const x = event.clientX + 16 + box.width > innerWidth ? event.clientX - box.width - 16 : event.clientX + 16;
    tip.style.left = x + "px";
    tip.style.top = Math.min(event.clientY + 14, innerHeight - box.height - 8) + "px";
  };
  const states = {d: "down", z: "frozen", l: "left", o: "no power", ".": "nothing known"};
  for (const run of document.querySelectorAll(".figures")) {
    const script = run.querySelector('script[type="application/json"]');
    const facts = script ? JSON.parse(script.textContent) : null;
    const charts = [...run.querySelectorAll("svg.time")];
    const hide = () => {
      tip.hidden = true;
      for (const chart of charts) chart.querySelector(".cursor").setAttribute("hidden", "");
    };
    for (const chart of charts) {
      chart.addEventListener("pointerleave", hide);
      chart.addEventListener("pointermove", event => {
        const box = chart.getBoundingClientRect();
        const x = (event.clientX - box.left) / box.width * width;
        if (!facts || x < left || x > left + plot) return hide();
        const share = (x - left) / plot, time = share * facts.end_s;
        for (const other of charts) {
          const line = other.querySelector(".cursor");
          line.removeAttribute("hidden");
          line.setAttribute("x1", x);
          line.setAttribute("x2", x);
        }
        const at = Math.min(facts.made.length - 1, Math.floor(time / facts.width_s));
        const ms = v => v === null ? "-" : v >= 1000 ? (v / 1000).toFixed(2) + " s" : v.toFixed(1) + " ms";
        const lines = [clock(time),
          "calls " + facts.made[at] + ", late " + facts.late[at] + ", failed " + facts.failed[at],
          "p50 " + ms(facts.p50[at]) + "   p99 " + ms(facts.p99[at])];
        if (chart.parentElement.dataset.kind === "heat" && facts.heat.length) {
          const y = (event.clientY - box.top) / box.width * width;
          const row = facts.heat[Math.floor((y - 20) / (facts.heat.length <= 32 ? 14 : 9))];
          if (row) {
            const cell = row[1][Math.min(row[1].length - 1, Math.floor(share * row[1].length))];
            lines.push(row[0] + ": " + (states[cell] || cell + "0 - " + (+cell + 1) + "0 % busy"));
          }
        }
        tip.textContent = lines.join("\\n");
        place(event);
      });
    }
  }
  for (const button of document.querySelectorAll("button[data-copy]")) {
    button.hidden = !navigator.clipboard;
    button.addEventListener("click", () => navigator.clipboard.writeText(button.dataset.copy).then(() => {
      button.textContent = "copied";
      setTimeout(() => { button.textContent = "copy"; }, 1500);
    }));
  }
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(d => { d.open = true; }));
})();
"""
"""The script, with three numbers of the charts' layout to be filled in."""
