"use strict";
for (const chart of document.querySelectorAll(".chart")) {
  const plot = chart.querySelector(".plot"), cursor = chart.querySelector(".cursor"), at = chart.querySelector(".at");
  const marks = chart.querySelectorAll(".mark"), first = +chart.dataset.first, span = +chart.dataset.end - first, rest = at.textContent;
  const lines = [...chart.querySelectorAll("b[data-x]")].map((out, i) => ({
    out, mark: marks[i], last: out.textContent,
    x: out.dataset.x.split(",").map(Number), y: out.dataset.y.split(",").map(Number), t: out.dataset.t.split("|"),
  }));
  const nearest = (list, x) => list.reduce((best, value, i) => (Math.abs(value - x) < Math.abs(list[best] - x) ? i : best), 0);
  const show = event => {
    const box = plot.getBoundingClientRect();
    const asked = first + span * Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const step = lines.map(line => line.x[nearest(line.x, asked)]).reduce((a, b) => (Math.abs(b - asked) < Math.abs(a - asked) ? b : a));
    at.textContent = "step " + step.toLocaleString("en");
    cursor.setAttribute("x1", 100 * (step - first) / span + "%");
    cursor.setAttribute("x2", 100 * (step - first) / span + "%");
    for (const line of lines) {
      const i = nearest(line.x, step);
      line.out.textContent = line.t[i];
      line.mark.setAttribute("cx", 100 * (line.x[i] - first) / span + "%");
      line.mark.setAttribute("cy", line.y[i] / 10 + "%");
    }
    plot.classList.add("read");
  };
  plot.addEventListener("pointermove", show);
  plot.addEventListener("pointerdown", show);
  plot.addEventListener("pointerleave", () => {
    plot.classList.remove("read");
    at.textContent = rest;
    for (const line of lines) line.out.textContent = line.last;
  });
}
