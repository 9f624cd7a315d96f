// Charts: Vega-Lite specifications with data of the rows that are shown. Colours follow the theme by CSS.

const drawings = new Map();
const small = matchMedia("(max-width: 600px)");

// Named, as the space that text takes is measured outside of the page.
const font = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif';

const look = {
  // One description a chart: that of each mark would be read with its colour.
  mark: { aria: false },
  background: null,
  font,
  view: { stroke: null },
  axis: {
    labelColor: "var(--ink)", titleColor: "var(--soft)", gridColor: "var(--rule)", domainColor: "var(--rule)",
    tickColor: "var(--rule)", labelFontSize: 12, titleFontSize: 12, titleFontWeight: 400, labelOverlap: "greedy", labelSeparation: 8,
  },
  legend: { labelColor: "var(--ink)", titleColor: "var(--soft)", labelFontSize: 12 },
  text: { fill: "var(--ink)", fontSize: 12 },
  style: { ink: { stroke: "var(--ink)", fill: "var(--ink)", color: "var(--ink)" }, seed: { fill: "var(--paper)", stroke: "var(--ink)", color: "var(--paper)" } },
};

/**
 * Draw a chart and keep it up to date.
 * @param place id of its element.
 * @param spec name of its specification.
 * @param fill () => {data: {name: rows}, signals: {...}, change: (spec) => void, about: text}, or null for nothing to show.
 */
function chart(place, spec, fill) {
  drawings.set(place, { spec, fill, view: null, waiting: Promise.resolve(), seen: "" });
  draw(place);
}

function draw(place, anew = false) {
  const drawing = drawings.get(place);
  // One after the other: a chart that is still being made is not made twice.
  drawing.waiting = drawing.waiting.then(() => drawn(place, drawing, anew)).catch((error) => console.error(place, error));
  return drawing.waiting;
}

async function drawn(place, drawing, anew) {
  const element = at(place);
  const filled = drawing.fill();
  const nothing = !filled || !Object.values(filled.data)[0].length;
  (element.closest("figure") || element).hidden = nothing;
  // What is hidden has no width, and would take that of 0 at the next resize: it is made anew when it is shown.
  if (nothing || !element.clientWidth) {
    drawing.view?.finalize();
    Object.assign(drawing, { view: null, seen: "" });
    return;
  }
  const spec = structuredClone(specs[drawing.spec]);
  filled.change?.(spec);
  if (spec.height.step) {
    const categories = new Set(Object.values(filled.data)[0].map((datum) => datum[spec.encoding.y.field]));
    spec.height = spec.height.step * categories.size * (categories.size > 12 ? 0.75 : 1);
  }
  const seen = JSON.stringify(spec);
  if (anew || drawing.seen !== seen) {
    drawing.view?.finalize();
    drawing.seen = seen;
    spec.description = filled.about;
    spec.datasets = filled.data;
    spec.params = spec.params.map((param) => (param.name in (filled.signals || {}) ? { ...param, value: filled.signals[param.name] } : param));
    const limit = Math.round(element.clientWidth * (small.matches ? 0.36 : 0.34));
    // What distinguishes rows stands at the end of their names, and n behind it.
    const characters = Math.floor(Math.max(90, limit) / 6.6);
    if (spec.encoding?.y?.field === "name") spec.encoding.y.axis.labelExpr = `truncate(datum.label, ${characters}, "center")`;
    const config = { ...look, axisY: { labelLimit: Math.max(90, limit) }, axisX: { labelLimit: 110 } };
    const made = await vegaEmbed(element, spec, {
      // Expressions are interpreted: the page's policy allows no code from text. Errors only: that no row has a teacher
      // is nothing to warn of.
      ast: true, logLevel: 1, actions: false, renderer: "svg", defaultStyle: false, config, tooltip: { disableDefaultStyle: true },
    });
    drawing.view = made.view;
    // The area around a nearest point has the point for its datum.
    const datum = (item) => item?.datum?.datum || item?.datum;
    made.view.addEventListener("click", (_, item) => datum(item)?.id && pick(datum(item).id));
    if (filled.hover) made.view.addEventListener("pointermove", (_, item) => filled.hover(datum(item)));
  } else {
    for (const [name, rows] of Object.entries(filled.data)) drawing.view.data(name, rows);
    for (const [name, value] of Object.entries(filled.signals || {})) drawing.view.signal(name, value);
  }
  drawing.view.signal("picked", state.picked);
  await drawing.view.runAsync();
  element.querySelector("svg")?.setAttribute("aria-label", filled.about);
}

function followCharts(what) {
  for (const [place, drawing] of drawings) {
    if (what === "rows") draw(place);
    else drawing.waiting = drawing.waiting.then(() => drawing.view?.signal("picked", state.picked).runAsync());
  }
}

function startCharts() {
  followers.push(followCharts);
  let width = innerWidth;
  let waiting = 0;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      // Labels have a share of the width, so charts are made anew where it changes much.
      if (Math.abs(innerWidth - width) < 40) return;
      width = innerWidth;
      for (const place of drawings.keys()) draw(place, true);
    }, 150);
  });
}

/** Return limits around values with some room. */
function limits(values, room = 0.06) {
  const known = values.filter((value) => value != null && Number.isFinite(value));
  if (!known.length) return { low: 0, high: 1 };
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const more = (high - low) * room || Math.abs(high) * 0.01 || 1;
  return { low: low - more, high: high + more };
}

function to(ends, n, sign = false) {
  if (!ends) return n < 3 ? "too few seeds" : "no spread";
  return ends.map((end) => (sign && end > 0 ? "+" : "") + end.toFixed(2)).join(" to ");
}

/** Write a name with its number of seeds. */
function withN(row) {
  return `${row.label} (n = ${row.n})`;
}

/** Return what every datum of a row has. */
function basics(row) {
  return { id: row.id, name: withN(row), colour: colour(row), shape: row.shape };
}
