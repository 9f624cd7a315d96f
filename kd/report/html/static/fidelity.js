// Views of predictions, image by image: they are there where the runs have some.

const study = view.fidelity;

function startFidelity() {
  if (study.why) {
    remove("following", "by-class", "calibration", "images");
    at("note-list").append(make("li", {}, `Teacher and students image by image: not shown, ${study.why}.`));
    return;
  }
  at("study-note").textContent = study.note;
  at("class-note").textContent = study.remark;
  startFollowing();
  startClasses();
  startConfusion();
  startReliability();
  startImages();
  const sections = ["following", "by-class", "calibration", "images"].map(at);
  followers.push(() => {
    for (const section of sections) section.hidden = state.data !== study.data;
  });
}

const grey = "light-dark(#595959, #b8b8b8)";
const blue = "light-dark(#0b62a4, #5cb3f0)";
const orange = "light-dark(#c05a00, #ff9f4a)";

/** Return what every datum of a network has; the teacher of a study is no row of its own. */
function ofNetwork(network) {
  const row = byId.get(network.id);
  const many = network.n > 1 ? ` (n = ${network.n})` : "";
  return { id: network.id, name: network.label + many, colour: row ? colour(row) : grey, shape: row ? row.shape : "diamond" };
}

function seenNetworks() {
  return study.networks.filter((network) => !byId.has(network.id) || shown(byId.get(network.id)));
}

function startFollowing() {
  const names = Object.keys(study.figures).filter((name) => study.networks.some((network) => network.figures?.[name]));
  const select = choices("figure-of", names.map((name) => [name, study.figures[name]]), names[0]);
  chart("fidelity", "fidelity", () => {
    const seen = seenNetworks().filter((network) => network.figures?.[select.value]);
    return {
      data: {
        figures: seen.map((network) => {
          const [mean, std] = network.figures[select.value];
          return { ...ofNetwork(network), mean, std, ...spreadOf(mean, std) };
        }),
      },
      change: (spec) => {
        spec.layer[1].encoding.x.title = spec.layer[0].encoding.x.title = study.figures[select.value];
        if (!study.figures[select.value].endsWith("%")) spec.layer[2].encoding.text.format = ".3f";
      },
      about: `${study.figures[select.value]}: ${seen.map((network) => `${network.label} ${network.figures[select.value][0]}`).join(", ")}.`,
    };
  });
  at("figure-note").textContent = "point: mean over n seeds; line: ± sample standard deviation";
  select.addEventListener("change", () => draw("fidelity"));
}

function startClasses() {
  chart("classes", "classes", () => {
    const seen = seenNetworks();
    const rows = seen.flatMap((network) => network.classes.map((acc, i) => ({ ...ofNetwork(network), class: study.classes[i], acc })));
    const label = seen.map((network) => network.label).join(", ");
    return { data: { classes: rows.filter((datum) => datum.acc != null) }, about: `Accuracy in each class of ${label}.` };
  });
}

function startConfusion() {
  const options = study.networks.map((network, i) => [String(i), network.label]);
  const last = String(study.networks.length - 1);
  const [a, b] = [choices("confusion-a", options, last), choices("confusion-b", options, "1")];
  const network = (select) => study.networks[Number(select.value)];
  const names = study.shown.map((label) => study.classes[label]);
  const cells = (values, ink) => names.flatMap((name, i) => names.map((other, j) => {
    const share = values[i][j];
    return { true: name, predicted: other, share, ...ink(share) };
  }));
  const inked = (strength, colour, text) => ({ strength, colour, text, ink: strength > 0.62 ? "light-dark(#ffffff, #101418)" : "var(--ink)" });
  const plain = (share) => inked(Math.sqrt(share / 100), blue, share >= 1 ? share.toFixed(0) : "");
  for (const [place, select, caption] of [["confusion-of-a", a, "caption-a"], ["confusion-of-b", b, "caption-b"]]) {
    chart(place, "confusion", () => {
      at(caption).textContent = network(select).label;
      return { data: { cells: cells(network(select).confusion, plain) }, about: `Confusion matrix of ${network(select).label}.` };
    });
  }
  chart("confusion-difference", "confusion", () => {
    const [ours, theirs] = [network(a), network(b)];
    at("caption-d").textContent = `${ours.label} minus ${theirs.label}, points: blue more, orange less often`;
    const values = names.map((_, i) => names.map((_, j) => Math.round(100 * (ours.confusion[i][j] - theirs.confusion[i][j])) / 100));
    const most = Math.max(0.5, ...values.flat().map(Math.abs));
    const signed = (share) => inked(Math.abs(share) / most, share < 0 ? orange : blue,
      Math.abs(share) >= 0.5 ? (share > 0 ? "+" : "−") + Math.abs(share).toFixed(0) : "");
    return {
      data: { cells: cells(values, signed) },
      about: `Difference of the confusion matrices of ${ours.label} and ${theirs.label}.`,
    };
  });
  const redraw = () => ["confusion-of-a", "confusion-of-b", "confusion-difference"].forEach((place) => draw(place));
  for (const select of [a, b]) select.addEventListener("change", redraw);
  followers.push((what) => {
    const place = study.networks.findIndex((found) => found.id === state.picked);
    if (what === "picked" && place > 0 && a.value !== String(place)) {
      a.value = String(place);
      redraw();
    }
  });
}

function startReliability() {
  chart("reliability", "reliability", () => ({
    data: {
      bins: seenNetworks().flatMap((network) => network.bins.map(([confidence, accuracy, share]) => ({ ...ofNetwork(network), confidence, accuracy, share }))),
      diagonal: [{ confidence: 0, accuracy: 0 }, { confidence: 1, accuracy: 1 }],
    },
    about: `Reliability diagram of ${seenNetworks().map((network) => network.label).join(", ")}.`,
  }));
  const cell = (value) => make("td", {}, value == null ? "too few errors" : value.toFixed(2));
  const head = ["network", "ECE, %", "scaled, %"].map((name, i) => make("th", { scope: "col", class: i ? null : "text" }, name));
  at("eces").tHead.replaceChildren(make("tr", {}, ...head));
  at("eces").tBodies[0].replaceChildren(...study.networks.map((network) => {
    return make("tr", {}, make("th", { scope: "row" }, dot(ofNetwork(network)), ` ${network.label}`), ...network.ece.map(cell));
  }));
}

function startImages() {
  const students = study.networks.filter((network) => study.images[network.id]);
  const select = choices("images-of", students.map((network) => [network.id, network.label]), students.at(-1).id);
  const some = Object.keys(study.pixels).length > 0;
  at("images-note").textContent = "Answers with the mean probability over the seeds. The images show what changed, not how often distillation helps."
    + (some ? "" : " The images themselves are shown with --images ROOT.");
  const fill = () => at("image-groups").replaceChildren(...study.images[select.value].flatMap((kind) => [
    make("h3", {}, `${kind.title}: ${kind.images.length < kind.count ? `${kind.images.length} of ` : ""}${kind.count}`),
    make("ul", { class: "tiles" }, ...kind.images.map(tile)),
  ]));
  select.addEventListener("change", fill);
  followers.push((what) => {
    if (what === "picked" && study.images[state.picked] && select.value !== state.picked) {
      select.value = state.picked;
      fill();
    }
  });
  fill();
}

function tile(image) {
  const name = study.classes[image.true];
  const pixels = study.pixels[image.place];
  const answers = image.answers.map(([who, predicted, sure]) => {
    const right = predicted === image.true;
    return make("span", { class: right ? "right" : "wrong" }, `${right ? "✓" : "✗"} ${who}: ${study.classes[predicted]}, ${sure}\u00a0%`);
  });
  return make("li", { class: "tile" }, pixels ? make("img", { src: pixels, alt: `test image ${image.place}: ${name}` }) : null,
    make("b", {}, name), ...(pixels ? [] : [make("span", {}, `test image ${image.place}`)]), ...answers);
}
