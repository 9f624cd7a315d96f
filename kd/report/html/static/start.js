// The page's parts, in order, once the library is there.

function startHead() {
  at("theme").addEventListener("click", () => theme.set(theme.dark() ? "light" : "dark"));
  at("theme").setAttribute("aria-pressed", String(theme.dark()));
  if (many) {
    at("dataset-label").hidden = false;
    const select = choices("dataset", view.datasets.map((data) => [data.name, data.name]), state.data);
    select.addEventListener("change", () => {
      state.data = select.value;
      changed("rows");
    });
  }
  followers.push((what) => {
    if (what !== "rows") return;
    const data = view.datasets.find((found) => found.name === state.data);
    at("sentences").replaceChildren(...(many ? [make("h3", {}, data.name)] : []), ...data.headline.map((line) => make("p", {}, line)));
    for (const note of document.querySelectorAll(".remark")) note.textContent = data.remark ? `Shown: ${data.remark}, and in the list of commands also the picked one. The table has all of them.` : "";
  });
  at("note-list").replaceChildren(...view.notes.map((note) => make("li", {}, note)));
}

function startPicked() {
  followers.push(() => {
    const row = byId.get(state.picked);
    at("picked").hidden = !row;
    if (!row) return;
    at("picked-name").textContent = row.label;
    at("picked").firstElementChild.style.setProperty("--colour", colour(row));
  });
  at("unpick").addEventListener("click", () => pick(""));
  addEventListener("keydown", (event) => event.key === "Escape" && pick(""));
}

function startNav() {
  const sections = [...document.querySelectorAll("[data-nav]")];
  const links = sections.map((section) => make("li", {}, make("a", { href: `#${section.id}` }, section.dataset.nav)));
  at("nav").replaceChildren(...links);
  followers.push((what) => { if (what === "rows") links.forEach((link, i) => { link.hidden = sections[i].hidden; }); });
}

startHead();
startTable();
startFurther();
startPicked();
startRuns();
startLegends();
document.head.append(make("script", {}, await unpack("library")));
startCharts();
startAccuracy();
startCurves();
startSweeps();
startCosts();
startVariance();
startFidelity();
startNav();
changed("rows");
await Promise.all([...drawings.values()].map((drawing) => drawing.waiting));
document.documentElement.dataset.ready = "true";
