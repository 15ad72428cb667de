// Fifteen minutes in four charts (uPlot), with a line for each mark: a move, a drain, a reload, a server down or up.

import { byId, make, write } from "./dom.js";
import uPlot from "./vendor/uPlot.esm.js";
import { bytes, clock, milliseconds, number, time } from "./words.js";

const SECONDS = 900;
const HEIGHT = 104;
const NEAR = 7; // pixels between pointer and mark
const perSecond = (value) => `${bytes(value)}/s`;

const CHARTS = [
  { title: "Connections per second", least: 5, form: number, series: [["connections", "", "--line-1"]] },
  { title: "Active connections", least: 5, form: number, series: [["active", "", "--line-1"]] },
  { title: "Traffic", least: 1000, form: perSecond, axis: bytes, series: [["bytes_in", "in", "--line-1"], ["bytes_out", "out", "--line-2"]] },
  { title: "Time to connect, last 10 s", least: 0.001, form: milliseconds, series: [["p50", "p50", "--line-1"], ["p99", "p99", "--line-2"]] },
];

export class Charts {
  constructor(model) {
    this.model = model;
    this.charts = CHARTS.map((spec) => new Chart(spec, model));
    byId("charts").append(...this.charts.map((chart) => chart.element));
    // Colours are read from the style sheet when a chart is made.
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.charts.forEach((chart) => chart.draw()));
    const resized = new ResizeObserver(() => this.charts.forEach((chart) => chart.resize()));
    resized.observe(byId("charts"));
  }

  update() {
    for (const chart of this.charts) chart.update();
    this.#listMarks();
  }

  /** The same marks for who does not point at a line: the newest first. */
  #listMarks() {
    const { marks } = this.model;
    const key = `${marks.length} ${marks.at(-1)?.time} ${marks[0]?.time}`;
    if (key === this.listed) return;
    this.listed = key;
    write(byId("marks-count"), marks.length === 0 ? "no marks" : marks.length === 1 ? "1 mark" : `${marks.length} marks`);
    const items = marks.toReversed().map((mark) => make("li", { "data-kind": mark.kind }, make("time", {}, time(mark.time)), make("span", {}, mark.text)));
    byId("marks").replaceChildren(...items);
  }
}

class Chart {
  constructor(spec, model) {
    this.spec = spec;
    this.model = model;
    this.values = spec.series.map(([, word, colour]) => ({ number: make("b"), word, colour }));
    const legend = this.values.map(({ number: value, word, colour }) =>
      make("span", { class: "value", "data-line": colour.slice(-1) }, word === "" ? "" : `${word} `, value),
    );
    this.at = make("span", { class: "at" });
    this.plot = make("div", { class: "plot", role: "img", "aria-label": `${spec.title}, the last 15 minutes` });
    this.tip = make("div", { class: "tip", hidden: true });
    const caption = make("figcaption", {}, make("span", { class: "title" }, spec.title), this.at, make("span", { class: "values" }, ...legend));
    this.element = make("figure", { class: "chart" }, caption, this.plot);
  }

  #data() {
    const { history } = this.model;
    return [history.time ?? [], ...this.spec.series.map(([name]) => history[name] ?? [])];
  }

  draw() {
    this.chart?.destroy();
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const { form, least, series, axis } = this.spec;
    const font = "11px system-ui, sans-serif";
    const common = { stroke: colour("--muted"), font, ticks: { show: false } };
    this.colours = { down: colour("--bad"), up: colour("--ok"), other: colour("--accent") };
    const options = {
      width: Math.max(120, this.plot.clientWidth),
      height: HEIGHT,
      padding: [6, 14, 0, 0],
      legend: { show: false },
      cursor: { y: false, sync: { key: "pylb" }, drag: { x: false, y: false }, points: { size: 5 } },
      scales: {
        x: { time: true, range: () => [this.model.head.now - SECONDS, this.model.head.now] },
        y: { range: (_plot, _low, high) => [0, Math.max(least, (high ?? 0) * 1.1)] },
      },
      axes: [
        { ...common, size: 22, gap: 5, space: 64, grid: { show: false }, values: (plot, splits) => splits.map((at) => (at - plot.scales.x.min < 45 ? "" : clock(at).slice(0, 5))) },
        { ...common, size: 50, gap: 4, space: 32, grid: { stroke: colour("--line"), width: 1 }, values: (_plot, splits) => splits.map((value) => (axis ?? form)(value)) },
      ],
      series: [
        {},
        ...series.map(([name, , line], place) => ({
          label: name,
          stroke: colour(line),
          fill: place === 0 && series.length === 1 ? `${colour(line)}22` : undefined,
          width: 1.25,
          points: { show: false },
        })),
      ],
      hooks: { drawAxes: [(plot) => this.#drawMarks(plot)], setCursor: [(plot) => this.#point(plot)] },
    };
    this.chart = new uPlot(options, this.#data(), this.plot);
    this.chart.over.append(this.tip);
  }

  resize() {
    const width = this.plot.clientWidth;
    if (this.chart && width > 0 && width !== this.chart.width) this.chart.setSize({ width, height: HEIGHT });
  }

  update() {
    if (this.chart === undefined) this.draw();
    else this.chart.setData(this.#data());
    if (this.chart.cursor.idx === null || this.chart.cursor.left < 0) this.#show(this.model.history.time?.length - 1, false);
  }

  /** The numbers of one second: the last, or the one that is pointed at. */
  #show(place, pointed) {
    const { history } = this.model;
    this.spec.series.forEach(([name], number_) => write(this.values[number_].number, this.spec.form(history[name]?.[place])));
    write(this.at, pointed ? time(history.time[place]) : "");
  }

  #drawMarks(plot) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.lineWidth = devicePixelRatio;
    for (const mark of this.model.marks) {
      const x = Math.round(plot.valToPos(mark.time, "x", true));
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.strokeStyle = ctx.fillStyle = this.#colour(mark);
      ctx.globalAlpha = 0.75;
      ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      const size = 4 * devicePixelRatio;
      ctx.globalAlpha = 1;
      ctx.beginPath();
      ctx.moveTo(x - size, bbox.top);
      ctx.lineTo(x + size, bbox.top);
      ctx.lineTo(x, bbox.top + 1.5 * size);
      ctx.fill();
    }
    ctx.restore();
  }

  #colour(mark) {
    if (["server_down", "unbound", "mass_lapse"].includes(mark.kind)) return this.colours.down;
    return ["server_up", "bound", "mass_lapse_over"].includes(mark.kind) ? this.colours.up : this.colours.other;
  }

  #point(plot) {
    const { idx, left } = plot.cursor;
    const inside = left >= 0 && idx !== null && idx !== undefined;
    this.#show(inside ? idx : this.model.history.time?.length - 1, inside);
    const near = inside ? this.model.marks.filter((mark) => Math.abs(plot.valToPos(mark.time, "x") - left) <= NEAR) : [];
    this.tip.hidden = near.length === 0;
    if (near.length === 0) return;
    write(this.tip, near.slice(-4).map((mark) => `${time(mark.time)} ${mark.text}`).join("\n"));
    this.tip.style.left = `${Math.min(left + 8, Math.max(0, plot.over.clientWidth - 240))}px`;
  }
}
