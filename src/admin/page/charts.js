// The charts, drawn by uPlot. Its data are columns: the times, then one column a series.

/* global uPlot */

const HOUR = 3600;
/** A gateway that has just begun has a chart of so many seconds. */
const LEAST = 300;
const HEIGHT = 210;

const minute = (sample, count) => (count * 60_000) / sample.interval_ms;
const second = (sample, count) => (count * 1000) / sample.interval_ms;

export function count(number) {
  if (number === null || number === undefined) return "–";
  return number.toLocaleString("en", { maximumFractionDigits: number < 100 ? 1 : 0 }).replaceAll(",", "\u202f");
}

export function millis(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1) return `${ms.toFixed(2)} ms`;
  return ms < 1000 ? `${ms.toPrecision(ms < 10 ? 2 : 3).replace(/\.0+$/, "")} ms` : `${count(ms / 1000)} s`;
}

/**
 * How values are spread: evenly; by their logarithm; or nearly so, but with a zero (the inverse hyperbolic sine), where one failure
 * must show beside a thousand that went well.
 */
const SCALES = {
  linear: { distr: 1, range: (_, __, max) => [0, max > 0 ? max * 1.1 : 1] },
  log: { distr: 3, range: (_, min, max) => (min > 0 ? uPlot.rangeLog(min, max, 10, true) : [1, 1000]) },
  wide: { distr: 4, asinh: 1, range: (_, __, max) => [0, Math.max(10, max * 1.5)] },
};

/** Lines at the powers of ten, and at zero. */
const decades = (_, values) => values.map((value) => (value === 0 || Number.isInteger(Math.log10(value)) ? value : null));

const CHARTS = [
  {
    id: "outcomes",
    scale: "wide",
    value: count,
    series: [
      { label: "added", color: "blue", fill: true, of: (s) => minute(s, s.added) },
      { label: "duplicate", color: "grey", dash: [6, 3], of: (s) => minute(s, s.duplicate) },
      { label: "failed", color: "orange", of: (s) => minute(s, s.failed) },
      { label: "in doubt", color: "violet", width: 2, of: (s) => minute(s, s.in_doubt) },
      { label: "other errors", color: "teal", dash: [2, 3], of: (s) => minute(s, s.other) },
    ],
    says(samples) {
      const sum = (of) => samples.reduce((total, sample) => total + of(sample), 0);
      return (
        `In all: ${count(sum((s) => s.added))} added, ${count(sum((s) => s.duplicate))} duplicate, ` +
        `${count(sum((s) => s.failed))} failed, ${count(sum((s) => s.in_doubt))} in doubt, ${count(sum((s) => s.other))} other errors. Logarithmic above 1.`
      );
    },
  },
  {
    id: "latency",
    scale: "log",
    value: millis,
    series: [
      { label: "p50", color: "blue", of: (s) => positive(s.p50_ms) },
      { label: "p95", color: "amber", of: (s) => positive(s.p95_ms) },
      { label: "p99", color: "rose", dash: [6, 3], of: (s) => positive(s.p99_ms) },
    ],
    says(samples) {
      const answered = samples.filter((sample) => sample.requests > 0);
      if (answered.length === 0) return "No request was made.";
      const worst = answered.reduce((one, other) => (other.p99_ms > one.p99_ms ? other : one));
      return `Of 10 seconds each, on a logarithmic scale. The slowest: p99 ${millis(worst.p99_ms)}.`;
    },
  },
  {
    id: "rate",
    scale: "linear",
    value: count,
    series: [
      { label: "requests", color: "blue", fill: true, of: (s) => second(s, s.requests) },
      { label: "learned rate", color: "teal", width: 2, of: (s) => s.learned_rate },
      { label: "configured rate", color: "grey", dash: [6, 3], of: (s) => s.configured_rate },
    ],
    paused: true,
    says(samples) {
      const refused = samples.reduce((total, sample) => total + sample.rate_limited, 0);
      const requests = samples.reduce((total, sample) => total + sample.requests, 0);
      return `${count(requests)} requests, ${count(refused)} of them answered with 429. Shaded: paused after a 429.`;
    },
  },
  {
    id: "queue",
    scale: "wide",
    value: count,
    series: [
      { label: "unary waiting", color: "blue", of: (s) => s.waiting_unary },
      { label: "stream waiting", color: "violet", dash: [6, 3], of: (s) => s.waiting_streams },
      { label: "in flight", color: "teal", of: (s) => s.in_flight },
    ],
    says(samples) {
      const most = (of) => samples.reduce((most, sample) => Math.max(most, of(sample)), 0);
      return (
        `At most: ${count(most((s) => s.waiting_unary))} unary and ${count(most((s) => s.waiting_streams))} stream waiting, ` +
        `${count(most((s) => s.in_flight))} in flight. Logarithmic above 1.`
      );
    },
  },
];

/** A logarithm has no zero. */
function positive(number) {
  return number > 0 ? number : null;
}

/** The charts of a page. `clock(seconds, withSeconds)` writes a time of day. */
export class Charts {
  constructor(clock) {
    this.clock = clock;
    this.plots = new Map();
    this.data = null;
    this.resizing = new ResizeObserver((entries) => {
      for (const { target, contentRect } of entries) {
        this.plots.get(target)?.setSize({ width: Math.floor(contentRect.width), height: HEIGHT });
      }
    });
    for (const chart of CHARTS) this.resizing.observe(place(chart));
  }

  /** Shows samples, each with the time `at` of its end, up to `now`; both in seconds. */
  show(samples, now) {
    const first = samples.length > 0 ? samples[0].at - samples[0].interval_ms / 1000 : now;
    this.range = [Math.max(now - HOUR, Math.min(first, now - LEAST)), now];
    this.data = samples;
    for (const chart of CHARTS) {
      const box = place(chart);
      const columns = this.columns(chart);
      const plot = this.plots.get(box);
      if (plot) plot.setData(columns);
      else this.plots.set(box, this.plot(chart, box, columns));
      this.tell(this.plots.get(box));
      const says = chart.says(samples);
      box.parentElement.querySelector("figcaption").textContent = says;
      box.querySelector(".u-wrap").setAttribute("aria-label", says);
    }
  }

  /** Draws them anew: with other colours, or other times of day. */
  redraw() {
    for (const plot of this.plots.values()) plot.destroy();
    this.plots.clear();
    if (this.data) this.show(this.data, this.range[1]);
  }

  columns(chart) {
    const columns = [this.data.map((sample) => sample.at)];
    for (const series of chart.series) columns.push(this.data.map(series.of));
    if (chart.paused) columns.push(this.data.map((sample) => (sample.paused ? 1 : 0)));
    return columns;
  }

  plot(chart, box, columns) {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(`--${name}`).trim();
    const axis = { stroke: color("quiet"), font: "12px system-ui", grid: { stroke: color("grid"), width: 1 }, ticks: { show: false } };
    const spread = chart.scale === "linear" ? {} : { filter: decades, grid: { ...axis.grid, filter: decades } };
    const series = chart.series.map((series) => ({
      label: series.label,
      stroke: color(series.color),
      fill: series.fill ? `${color(series.color)}22` : undefined,
      width: series.width ?? 1.5,
      dash: series.dash,
      points: { show: false },
      value: (_, value) => chart.value(value),
    }));
    if (chart.paused) {
      series.push({
        label: "paused",
        scale: "paused",
        fill: color("shade"),
        stroke: color("shade"),
        width: 0,
        points: { show: false },
        paths: uPlot.paths.stepped({ align: -1 }),
        value: (_, value) => (value ? "yes" : "no"),
      });
    }
    const options = {
      width: Math.floor(box.clientWidth),
      height: HEIGHT,
      padding: [8, 8, 0, 0],
      cursor: { sync: { key: "all" }, drag: { x: false, y: false }, points: { size: 6 } },
      scales: {
        x: { time: true, range: () => this.range },
        y: SCALES[chart.scale],
        paused: { range: () => [0, 1] },
      },
      axes: [
        { ...axis, size: 28, space: 64, values: (_, times, __, ___, step) => times.map((time) => this.clock(time, step < 60)) },
        { ...axis, ...spread, size: 56, values: (_, values) => values.map((value) => (value === null ? null : chart.value(value))) },
      ],
      series: [{ label: "at", value: (_, time) => (time === null ? "–" : this.clock(time, true)) }, ...series],
      hooks: { setCursor: [(plot) => this.tell(plot)] },
    };
    const plot = new uPlot(options, columns, box);
    box.querySelector(".u-wrap").setAttribute("role", "img");
    return plot;
  }

  /** Without a cursor the legend tells the latest values. */
  tell(plot) {
    if (plot.cursor.idx === null || plot.cursor.idx === undefined) plot.setLegend({ idx: plot.data[0].length - 1 }, false);
  }
}

function place(chart) {
  return document.querySelector(`#chart-${chart.id} .plot`);
}
