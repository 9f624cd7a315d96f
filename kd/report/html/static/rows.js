// Charts of rows: accuracy, differences, curves, sweeps, cost, spread; and the list of runs.

function spreadOf(acc, std) {
  return std == null ? {} : { from: acc - std, to: acc + std };
}

function startAccuracy() {
  const zero = at("zero");
  chart("bars", "bars", () => {
    const rows = shownRows().filter((row) => row.acc != null);
    at("teacher-mark").hidden = rows.every((row) => row.teacher == null);
    const values = rows.flatMap((row) => [row.acc, row.teacher, ...(row.interval || []), ...row.seeds.map(([, acc]) => acc)]);
    const { low, high } = limits(values, 0.05);
    // From a multiple of 5, about half of the values' range below the lowest.
    const from = zero.checked ? 0 : Math.max(0, 5 * Math.floor((low - (high - low) / 2 - 1) / 5));
    return {
      data: {
        rows: rows.map((row) => ({
          ...basics(row), acc: row.acc, teacher: row.teacher, from: row.interval?.[0], to: row.interval?.[1],
          between: to(row.interval, row.n), verdict: row.difference?.verdict || "",
        })),
        seeds: rows.flatMap((row) => row.seeds.map(([seed, acc], i) => ({
          ...basics(row), seed, acc, place: row.seeds.length > 1 ? (2 * i) / (row.seeds.length - 1) - 1 : 0,
        }))),
      },
      signals: { low: from, high: zero.checked ? Math.max(high, 1) : high },
      about: `Bar chart of test accuracy in percent: ${rows.map((row) => `${row.label} ${row.acc.toFixed(2)}`).join(", ")}.`,
    };
  });
  zero.addEventListener("change", () => draw("bars"));
  chart("differences", "differences", () => {
    const rows = shownRows().filter((row) => row.difference);
    const base = view.datasets.find((data) => data.name === state.data).baseline;
    at("differences-caption").textContent = rows.length
      ? `Compared with ${base}, over common seeds: diamond mean difference, line 95 % interval, points seeds.` : "";
    return {
      data: {
        rows: rows.map((row) => ({
          ...basics(row), mean: row.difference.mean, from: row.difference.interval?.[0], to: row.difference.interval?.[1],
          between: to(row.difference.interval, row.difference.seeds.length, true), verdict: row.difference.verdict,
        })),
        seeds: rows.flatMap((row) => row.difference.seeds.map((mean) => ({ ...basics(row), mean }))),
        zero: [{ mean: 0 }],
      },
      about: `Differences to ${base} in points: ${rows.map((row) => `${row.label} ${to([row.difference.mean], row.difference.seeds.length, true)}, ${row.difference.verdict}`).join("; ")}.`,
    };
  });
}

/** Show the tables that some reports have besides that of the rows. */
function startFurther() {
  view.further.forEach((table, place) => {
    const of = (column) => (table.headers[column][1] ? null : "text");
    const head = table.headers.map(([name], i) => make("th", { scope: "col", class: of(i) }, name.replace(", ", ",\n")));
    const lines = table.cells.map(([name, ...rest]) =>
      make("tr", {}, make("th", { scope: "row" }, name), ...rest.map((cell, i) => make("td", { class: of(i + 1) }, cell))));
    const scroll = make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": table.title },
      make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...lines)));
    const notes = table.notes.map((note) => make("p", { class: "note" }, note));
    const section = make("section", { id: `further-${place}`, class: "further", "data-nav": table.title }, make("h2", {}, table.title), scroll, ...notes);
    at("learning").before(section);
    followers.push((what) => { if (what === "rows") section.hidden = table.data !== null && table.data !== state.data; });
  });
}

function startCurves() {
  if (!view.curves.length) return remove("learning");
  const select = choices("curve", view.curves.map((curve, i) => [String(i), curve.title]), "0");
  const whole = at("whole");
  const hover = (datum) => {
    if (datum?.epoch == null) return;
    const { lines } = view.curves[Number(select.value)];
    const values = shownRows().flatMap((row) => {
      const value = lines[row.id]?.mean[lines[row.id].epochs.indexOf(datum.epoch)];
      return value == null ? [] : [[row, value]];
    });
    values.sort(([, a], [, b]) => b - a);
    at("readout").replaceChildren(`epoch ${datum.epoch}: `, ...values.map(([row, value]) => {
      const about = [dot(basics(row)), ` ${row.label} `, make("b", {}, value.toPrecision(4))];
      return make("span", { class: row.id === datum.id ? "near" : null }, ...about);
    }));
  };
  chart("curves", "curves", () => {
    const curve = view.curves[Number(select.value)];
    const rows = shownRows().filter((row) => curve.lines[row.id]);
    const last = Math.max(...rows.map((row) => curve.lines[row.id].epochs.at(-1)));
    const late = [];
    const lines = rows.flatMap((row) => {
      const { epochs, mean, std } = curve.lines[row.id];
      return epochs.map((epoch, i) => {
        // The steep beginning would flatten the rest.
        const band = std && mean[i] != null ? { std: std[i], below: mean[i] - std[i], above: mean[i] + std[i] } : {};
        if (whole.checked || epoch > epochs.at(-1) / 10) late.push(mean[i], band.below, band.above);
        return { ...basics(row), epoch, mean: mean[i], dash: row.dash, ...band };
      });
    });
    return {
      data: { lines },
      signals: limits(late),
      hover,
      change: (spec) => {
        spec.layer[1].mark.point = last === 1;
      },
      about: `Curves of ${curve.title} over ${last} epochs of ${rows.map((row) => row.label).join(", ")}.`,
    };
  });
  select.addEventListener("change", () => draw("curves"));
  whole.addEventListener("change", () => draw("curves"));
}

function startSweeps() {
  if (!view.sweeps.length) return remove("sweeps");
  view.sweeps.forEach((sweep, i) => {
    const axes = sweep.axes.join(" and ");
    const about = `${sweep.metric} by ${axes}` + (many ? `, ${sweep.data}` : "") + (sweep.remark ? `; ${sweep.remark}` : "");
    if (sweep.axes.length === 1) return addSweep(i, sweep, make("figcaption", {}, about), "sweep", sweep.points);
    for (const line of new Set(sweep.points.map((point) => point.line))) {
      const title = make("figcaption", {}, `${line}: ${about}`);
      const points = sweep.points.filter((point) => point.line === line);
      addSweep(`${i}-${at("sweep-list").children.length}`, sweep, title, sweep.loose ? "dots" : "map", points);
    }
  });
}

function addSweep(key, sweep, caption, spec, points) {
  at("sweep-list").append(make("figure", {}, caption, make("div", { class: "chart", id: `sweep-${key}` })));
  chart(`sweep-${key}`, spec, () => {
    const seen = points.filter((point) => shown(byId.get(point.id)));
    const first = (line) => byId.get(points.find((point) => point.line === line).id);
    const drawn = (point) => ({ ...basics(byId.get(point.id)), hue: colour(first(point.line)), ...point, ...spreadOf(point.acc, point.std) });
    return {
      data: { points: seen.map(drawn) },
      change: (made) => {
        made.encoding.x.title = sweep.axes[0];
        if (sweep.axes.length > 1) made.encoding.y.title = sweep.axes[1];
        if (spec === "map") return;
        for (const [axis, logarithmic] of [["x", sweep.logarithmic[0]], ["y", sweep.logarithmic[1]]]) {
          if (logarithmic) made.encoding[axis].scale = { type: "log", nice: false, padding: 16 };
        }
      },
      about: `${sweep.metric} by ${sweep.axes.join(" and ")}: ${seen.length} points.`,
    };
  });
}

function startCosts() {
  const names = [...new Set(view.rows.flatMap((row) => Object.keys(row.costs)))];
  const several = names.filter((name) => new Set(view.rows.map((row) => row.costs[name]).filter((cost) => cost != null)).size > 1);
  if (!several.length) return remove("cost");
  const select = choices("cost-of", several.map((name) => [name, name]), several[0]);
  chart("costs", "costs", () => {
    const rows = shownRows().filter((row) => row.acc != null && row.costs[select.value]);
    return {
      data: {
        points: rows.map((row) => ({
          ...basics(row), x: row.costs[select.value], acc: row.acc, ...spreadOf(row.acc, row.std),
        })),
      },
      change: (spec) => {
        spec.encoding.x.title = `${select.value}, logarithmic`;
        // Minutes have no such prefixes: 0.5 would be 500m.
        if (select.value.startsWith("training time")) spec.encoding.x.axis.format = ",.3~r";
      },
      about: `Test accuracy by ${select.value}: ${rows.map((row) => row.label).join(", ")}.`,
    };
  });
  select.addEventListener("change", () => draw("costs"));
}

function startVariance() {
  if (!view.rows.some((row) => row.variance)) return remove("spread");
  chart("variance", "variance", () => {
    const rows = shownRows().filter((row) => row.variance);
    const parts = [["between seeds", "seeds"], ["test images", "images"]];
    return {
      data: { parts: rows.flatMap((row) => parts.map(([source, key]) => ({ ...basics(row), source, std: row.variance[key] }))) },
      about: `Standard deviations in points, between seeds and of test images: ${rows.map((row) => `${row.label} ${row.variance.seeds} and ${row.variance.images}`).join(", ")}.`,
    };
  });
}

function startRuns() {
  at("run-list").replaceChildren(...[...byId.values()].map((row) => {
    const entry = make("details", { "data-id": row.id }, make("summary", {}, dot(basics(row)), row.label, make("span", { class: "soft" }, ` n = ${row.n}` + (many ? `, ${row.data}` : ""))));
    entry.addEventListener("toggle", () => entry.open && entry.children.length === 1 && entry.append(...described(row)));
    return entry;
  }));
  followers.push(() => {
    for (const entry of at("run-list").children) {
      const row = byId.get(entry.dataset.id);
      entry.hidden = !listed(row) || !(row.drawn || row.id === state.picked);
      entry.classList.toggle("picked", row.id === state.picked);
    }
  });
  addEventListener("beforeprint", () => {
    if (byId.size <= 40) for (const entry of at("run-list").children) entry.open = true;
  });
}

function described(row) {
  const commands = row.commands.join("\n") + (row.more ? `\n# and ${row.more} more` : "");
  const facts = row.facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]);
  const known = row.commands.length ? make("pre", { tabindex: "0" }, commands)
    : make("p", { class: "note" }, "The records have no command, as those of older versions; the settings below make the same run.");
  return [known, make("dl", { class: "facts" }, ...facts)];
}

/** Buttons that take a run out of the charts and put it back. */
function startLegends() {
  const legends = [...document.querySelectorAll(".legend")];
  const follow = () => {
    for (const legend of legends) {
      for (const button of legend.children) {
        const row = byId.get(button.dataset.id);
        button.hidden = !listed(row);
        button.setAttribute("aria-pressed", String(!state.hidden.has(row.id)));
        button.classList.toggle("picked", row.id === state.picked);
      }
    }
  };
  for (const legend of legends) {
    const known = legend.closest("#by-class") && new Set((view.fidelity.networks || []).map((network) => network.id));
    const rows = [...byId.values()].filter((row) => (known ? known.has(row.id) : row.drawn));
    legend.replaceChildren(...rows.map((row) => make("button", { type: "button", "data-id": row.id, onclick: () => toggle(row.id) }, dot(basics(row)), make("span", {}, row.label))));
  }
  followers.push(follow);
}
