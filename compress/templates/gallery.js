"use strict";
// Filters and order. Without this script every entry is shown, by name.
{
  const form = document.querySelector("form.filters");
  const list = document.querySelector(".cards-grid");
  const entries = [...document.querySelectorAll(".entry")];
  const keyed = [...document.querySelectorAll(".plot [data-key]")];
  const number = (text, otherwise) => (text === "" ? otherwise : Number(text));
  const orders = {
    name: () => 0,
    bytes: (a, b) => a.dataset.bytes - b.dataset.bytes,
    quality: (a, b) => number(b.dataset.quality, -Infinity) - number(a.dataset.quality, -Infinity) || 0,
    ratio: (a, b) => number(a.dataset.ratio, Infinity) - number(b.dataset.ratio, Infinity) || 0,
  };

  const fits = ({ dataset }) => {
    const { text, component, format, size } = Object.fromEntries(new FormData(form));
    return (
      text.toLowerCase().split(/\s+/).every((word) => dataset.text.includes(word)) &&
      (component === "" || dataset.component === component) &&
      (format === "" || dataset.formats.split(" ").includes(format)) &&
      (size === "" || Number(dataset.bytes) <= 1024 * Number(size))
    );
  };

  // The dashed stair of what is shown: as eval/report/svg.py draws it, from the places of the marks.
  const front = (chart) => {
    chart.querySelectorAll(".front").forEach((line) => line.remove());
    const marks = [...chart.querySelectorAll(".mark:not(.gone) .in-mark")];
    const places = marks.map((m) => [parseFloat(m.getAttribute("x")), parseFloat(m.getAttribute("y")) - 4]);
    places.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    const best = places.filter(([, y], i) => places.slice(0, i).every(([, other]) => y < other));
    const line = (x1, y1, x2, y2) => {
      const drawn = document.createElementNS("http://www.w3.org/2000/svg", "line");
      const all = { class: "front", x1: `${x1}%`, y1, x2: `${x2}%`, y2, stroke: "currentColor", "stroke-dasharray": "4 4" };
      Object.entries(all).forEach(([name, value]) => drawn.setAttribute(name, value));
      chart.insertBefore(drawn, chart.querySelector("a, .mark"));
    };
    best.slice(1).forEach(([x, y], i) => {
      line(best[i][0], best[i][1], x, best[i][1]);
      line(x, best[i][1], x, y);
    });
  };

  const update = () => {
    const shown = new Set(entries.filter(fits).map((entry) => entry.dataset.key));
    entries.forEach((entry) => { entry.hidden = !shown.has(entry.dataset.key); });
    [...entries].sort(orders[form.elements.order.value]).forEach((entry) => list.append(entry));
    keyed.forEach((item) => {
      item.classList.toggle("gone", !shown.has(item.dataset.key));
      item.closest("a")?.classList.toggle("gone", !shown.has(item.dataset.key));
    });
    document.querySelectorAll(".plot .chart").forEach(front);
    document.querySelectorAll(".plot").forEach((plot) => {
      plot.classList.toggle("gone", plot.querySelector(".legend li:not(.gone)") === null);
    });
    document.querySelector(".nothing").hidden = shown.size > 0;
    form.querySelector("output").value = `Showing ${shown.size} of ${entries.length}`;
  };

  if (list) {
    form.hidden = false;
    form.addEventListener("input", update);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(update));
    update();
  }
}
