// State of the page, and what all parts share. Whatever a record brought in is only ever written as text.

/** Return the text that an element has as gzip in base64. */
async function unpack(id) {
  const element = document.getElementById(id);
  const bytes = Uint8Array.from(atob(element.textContent), (c) => c.charCodeAt(0));
  element.remove();
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

const { view, charts: specs } = JSON.parse(await unpack("data"));
const byId = new Map(view.rows.map((row, place) => [row.id, { ...row, place }]));
const state = { data: view.datasets[0].name, words: [], hidden: new Set(), picked: "" };
const followers = [];
const many = view.datasets.length > 1;

/** Return the element with an id. */
function at(id) {
  return document.getElementById(id);
}

/** Make an element of attributes and children, of which strings become text. */
function make(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "colour") made.style.setProperty("--colour", value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

/** Return a row's colour, which CSS chooses by the theme. */
function colour(row) {
  return `light-dark(${row.colour[0]}, ${row.colour[1]})`;
}

/** Mark what has a colour and a shape in the charts. */
function dot({ colour, shape }) {
  return make("span", { class: `dot ${shape}`, colour, "aria-hidden": "true" });
}

function text(row) {
  return view.table.cells[row.place].join(" ").toLowerCase();
}

/** Return whether the table has a row now: by data set and filter. */
function listed(row) {
  return row.data === state.data && state.words.every((word) => row.words.includes(word));
}

/** Return whether charts show a row. */
function shown(row) {
  return listed(row) && !state.hidden.has(row.id);
}

function shownRows() {
  return [...byId.values()].filter((row) => row.drawn && shown(row));
}

/** Call all parts of the page after a change: `what` is "rows" or "picked". */
function changed(what) {
  for (const follow of followers) follow(what);
}

/** Pick a row in every view; again, or "": none. */
function pick(id) {
  state.picked = id === state.picked || !byId.has(id) ? "" : id;
  changed("picked");
}

function toggle(id) {
  if (!state.hidden.delete(id)) state.hidden.add(id);
  changed("rows");
}

/** Fill a list of choices; return the select. */
function choices(id, options, chosen) {
  const select = at(id);
  select.replaceChildren(...options.map(([value, name]) => make("option", { value, selected: value === chosen }, name)));
  return select;
}

function remove(...ids) {
  for (const id of ids) at(id)?.remove();
}

for (const row of byId.values()) row.words = text(row);

const theme = {
  /** Return whether the page is dark now. */
  dark: () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "")) === "dark",
  set: (name) => {
    document.documentElement.dataset.theme = name;
    at("theme").setAttribute("aria-pressed", String(name === "dark"));
  },
};
