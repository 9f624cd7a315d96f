// The table: sorted, filtered, copied.

const sorting = { column: -1, down: false };

function drawTable() {
  const headers = view.table.headers;
  const head = make("tr");
  headers.forEach(([name, numeric], column) => {
    const button = make("button", { type: "button", onclick: () => sortBy(column) }, name.replace(", ", ",\n"));
    head.append(make("th", { scope: "col", class: numeric ? null : "text", "aria-sort": "none" }, button));
  });
  at("rows").tHead.replaceChildren(head);
  at("rows").tBodies[0].replaceChildren(...[...byId.values()].map(tableRow));
}

function tableRow(row) {
  const cells = view.table.cells[row.place];
  const name = make("button", { type: "button", class: "pick", "aria-pressed": "false" }, dot(basics(row)), make("span", {}, cells[0]));
  const line = make("tr", { "data-id": row.id, onclick: () => pick(row.id) }, make("th", { scope: "row" }, name));
  cells.slice(1).forEach((cell, i) => line.append(make("td", { class: view.table.headers[i + 1][1] ? null : "text" }, cell)));
  return line;
}

/** Sort by a column: ascending, then descending, then as reported. Empty cells are last. */
function sortBy(column) {
  if (sorting.column !== column) Object.assign(sorting, { column, down: view.table.headers[column][1] });
  else if (sorting.down === view.table.headers[column][1]) sorting.down = !sorting.down;
  else sorting.column = -1;
  const body = at("rows").tBodies[0];
  const sorted = [...body.rows].sort((a, b) => compareRows(byId.get(a.dataset.id), byId.get(b.dataset.id)));
  body.append(...sorted);
  [...at("rows").tHead.rows[0].cells].forEach((cell, i) => {
    const order = i !== sorting.column ? "none" : sorting.down ? "descending" : "ascending";
    cell.setAttribute("aria-sort", order);
  });
}

function compareRows(a, b) {
  const { column, down } = sorting;
  if (column < 0) return a.place - b.place;
  const [x, y] = [a, b].map((row) => view.table.order[row.place][column] ?? view.table.cells[row.place][column]);
  if (x === "" || y === "") return (x === "") - (y === "") || a.place - b.place;
  const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
  return (down ? -order : order) || a.place - b.place;
}

function followTable(what) {
  let count = 0;
  for (const line of at("rows").tBodies[0].rows) {
    const row = byId.get(line.dataset.id);
    line.hidden = !listed(row);
    count += !line.hidden;
    const picked = row.id === state.picked;
    line.classList.toggle("picked", picked);
    line.querySelector(".pick").setAttribute("aria-pressed", String(picked));
  }
  if (what === "rows") at("counted").textContent = `${count} of ${byId.size} row${byId.size === 1 ? "" : "s"}`;
}

// Copies: the rows and the order that are seen

function lines() {
  const seen = [...at("rows").tBodies[0].rows].filter((line) => !line.hidden);
  return [view.table.headers.map(([name]) => name), ...seen.map((line) => view.table.cells[byId.get(line.dataset.id).place])];
}

const writers = {
  markdown(table) {
    const cell = (value) => value.replace(/[\\|`*_$~<[\]]/g, "\\$&");
    const rules = view.table.headers.map(([, numeric]) => (numeric ? "---:" : ":---"));
    const [head, ...rest] = table.map((line) => line.map(cell));
    return [head, rules, ...rest].map((line) => `| ${line.join(" | ")} |\n`).join("");
  },
  latex(table) {
    const special = { "[": "{[}", "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "±": "$\\pm$", "<": "$<$", ">": "$>$" };
    const cell = (value) => value.replace(/[\\~^±<>&%$#_{}[]/g, (c) => special[c] || `\\${c}`);
    const [head, ...rest] = table.map((line) => `${line.map(cell).join(" & ")} \\\\\n`);
    const aligned = view.table.headers.map(([, numeric]) => (numeric ? "r" : "l")).join("");
    return `\\begin{tabular}{${aligned}}\n\\toprule\n${head}\\midrule\n${rest.join("")}\\bottomrule\n\\end{tabular}\n`;
  },
  csv(table) {
    // A spreadsheet would compute a text that begins like a formula; numbers such as +1.25 are none.
    const formula = (value) => /^[=+\-@]/.test(value) && !/^[-+]?[\d.,]+( |$)/.test(value);
    const cell = (value) => (formula(value) ? `'${value}` : value);
    return table.map((line) => line.map((value) => `"${cell(value).replaceAll('"', '""')}"`).join(",") + "\n").join("");
  },
};

async function copy(event) {
  const content = writers[event.target.dataset.copy](lines());
  let done = true;
  try {
    await navigator.clipboard.writeText(content);
    at("counted").textContent = `copied ${lines().length - 1} rows`;
  } catch {
    done = false;
  }
  at("copied").hidden = done;
  at("copied-text").value = content;
  if (!done) at("copied-text").select();
}

function startTable() {
  drawTable();
  at("filter").addEventListener("input", () => {
    state.words = at("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    changed("rows");
  });
  for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", copy);
  followers.push(followTable);
}
