import re
import shutil
import subprocess
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.special import softmax

from kd.errors import UserError
from kd.report.comparison import compare
from kd.report.fidelity.page import Pixels
from kd.report.html import bundle
from kd.report.html.fidelity import fidelity
from kd.report.html.page import packed, to_html, unpacked
from kd.report.html.view import view
from kd.report.summary import summarize
from kd.runs.results import collect
from tests.common import ROOT
from tests.report.fidelity.made import LABELS, TEACHER, noisy, put
from tests.report.html.browser import needs_browser, visit
from tests.report.made import ALONE, changed, seeds

vl_convert = pytest.importorskip("vl_convert", reason="the extra page")

EVIL = "</script><script>window.hacked=1</script><img src=x onerror=hacked=1>"
CURVES = {"epoch_val_acc": [0.3, 0.6, 0.8], "epoch_val_loss": [2.0, 1.0, 0.5]}


def made(dirs, pixels=None, baseline=None):
    summary = summarize(*collect(dirs))
    comparisons = compare(summary.rows, baseline)
    return to_html(view(summary, comparisons) | {"fidelity": fidelity(summary.rows, comparisons, dirs, pixels)})


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Students with predictions and images on one data set, and rows with hostile names on another."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        put(folder / f"s{seed}", "standard", seed, noisy(seed), **CURVES, command=f"seed={seed}", val_acc=0.8)
        taught = noisy(seed, 0.3)
        put(folder / f"a{seed}", "logits", seed, taught, TEACHER, **CURVES, command=EVIL, val_acc=0.85)
        for i, name in enumerate([EVIL, "\x1b[31mred\nline", "{{script}}" + "x" * 300]):
            put_result(folder / f"e{i}{seed}", method=name, dataset=f"x {EVIL}", seed=seed, test_acc=0.5 + seed / 100)
    images = np.random.default_rng(0).integers(0, 255, (len(LABELS), 8, 8, 3)).astype(np.uint8)
    return made([folder], lambda study: Pixels(images, [EVIL, "cat", "dog", "frog", "'\"&"]))


def put_result(directory, **changes):
    from kd.runs.results import write

    directory.mkdir(parents=True)
    write(changed(replace(ALONE, **CURVES), **changes), directory / "result.json")


@pytest.mark.parametrize("name", ["s0", "a1"])
def test_page_without_predictions_names_a_file_that_is_damaged(tmp_path, name):
    """All else of the report is there."""
    for seed in range(3):
        put(tmp_path / f"s{seed}", "standard", seed, noisy(seed))
        put(tmp_path / f"a{seed}", "logits", seed, noisy(seed, 0.3), TEACHER)
    file = tmp_path / name / "predictions.npz"
    file.write_bytes(file.read_bytes()[:2000])
    shown = unpacked(made([tmp_path]))
    assert str(file.parent) in shown["fidelity"]["why"]
    assert len(shown["rows"]) == 2


CLICKS = """
const at = (id) => document.getElementById(id);
const wait = () => new Promise((done) => setTimeout(done, 300));
const seen = () => [...document.querySelectorAll('#rows tbody tr')].filter((row) => !row.hidden);
const names = () => seen().map((row) => row.cells[0].textContent);
const opacities = (chart) => [...new Set([...document.querySelectorAll('#' + chart + ' svg path')].map((path) =>
  path.getAttribute('opacity') ?? path.getAttribute('fill-opacity')).filter(Boolean))];
const narrow = () => { document.body.style.width = '390px'; return document.querySelector('main').scrollWidth; };
const found = { headings: [...document.querySelectorAll('h2')].map((heading) => heading.textContent) };
found.first = names();
found.charts = [...document.querySelectorAll('.chart')].map((chart) => [chart.id, !!chart.querySelector('svg')]);
found.faded = opacities('bars');

const heads = [...document.querySelectorAll('#rows thead button')];
const sort = heads.find((button) => button.textContent.startsWith('test'));
sort.click(); found.down = [names(), sort.parentElement.getAttribute('aria-sort')];
sort.click(); found.up = [names(), sort.parentElement.getAttribute('aria-sort')];

document.querySelector('#bars svg').scrollIntoView();
seen()[0].querySelector('.pick').click(); await wait();
found.picked = [at('picked-name').textContent, document.querySelectorAll('tr.picked').length,
  document.querySelectorAll('.legend button.picked').length, document.querySelectorAll('details.picked').length,
  seen()[0].querySelector('.pick').getAttribute('aria-pressed'), opacities('bars').length];
dispatchEvent(new KeyboardEvent('keydown', { key: 'Escape' })); await wait();
found.unpicked = at('picked').hidden;

found.clicked = [];
for (const chart of ['bars', 'curves', 'classes']) {
  for (const path of document.querySelectorAll(`#${chart} svg path:not(.background, .foreground)`)) {
    path.dispatchEvent(new PointerEvent('pointermove', { bubbles: true }));
    path.dispatchEvent(new MouseEvent('click', { bubbles: true }));
    if (!at('picked').hidden) break;
  }
  found.clicked.push(at('picked').hidden ? '' : at('picked-name').textContent);
  at('unpick').click();
}
found.readout = at('readout').textContent;

const legend = document.querySelector('.legend button');
const lines = () => document.querySelectorAll('#bars svg text').length;
const before = lines(); legend.click(); await wait();
found.toggled = [legend.getAttribute('aria-pressed'), before > lines()]; legend.click(); await wait();

const dark = () => getComputedStyle(document.body).backgroundColor;
const light = dark(); at('theme').click(); found.themes = [light, dark()]; at('theme').click();

at('filter').value = 'logits'; at('filter').dispatchEvent(new Event('input')); await wait();
found.filtered = [names(), at('counted').textContent];
navigator.clipboard.writeText = () => Promise.reject(new Error('none'));
found.copied = {};
for (const button of document.querySelectorAll('[data-copy]')) {
  button.click(); await wait(); found.copied[button.dataset.copy] = at('copied-text').value;
}
at('filter').value = ''; at('filter').dispatchEvent(new Event('input'));

document.querySelectorAll('details').forEach((entry) => { entry.open = true; });
await wait();
found.commands = [...document.querySelectorAll('pre')].map((pre) => pre.textContent);
found.tile = document.querySelector('.tile').textContent;
found.image = document.querySelector('.tile img').naturalWidth;
found.axis = [...document.querySelectorAll('#classes svg text')].map((text) => text.textContent);
at('confusion-a').selectedIndex = 0; at('confusion-a').dispatchEvent(new Event('change'));
at('dataset').selectedIndex = 1; at('dataset').dispatchEvent(new Event('change')); await wait();
found.second = names();
found.hacked = window.hacked ?? null;
found.tags = document.querySelectorAll('img[src="x"]').length;
found.broad = document.documentElement.scrollWidth <= innerWidth;
at('dataset').selectedIndex = 0; at('dataset').dispatchEvent(new Event('change')); await wait();
found.narrow = [narrow(), document.querySelector('.head').getBoundingClientRect().height];
return found;
"""


@pytest.fixture(scope="module")
def visited(page, tmp_path_factory):
    return visit(page, CLICKS, tmp_path_factory.mktemp("browser"))


@needs_browser
def test_page_runs_without_errors_and_without_requests(visited):
    found, console, requests = visited
    assert found.get("error") is None
    assert "\n".join(console) == ""
    assert requests == set()
    assert {name for name, drawn in found["charts"] if not drawn} == set()


@needs_browser
def test_visit_notices_errors_and_requests(tmp_path):
    """So that their absence elsewhere means something."""
    page = (
        "<html><meta http-equiv='x' content=\"script-src 'sha256-x\"><body><img src='http://example.test/a.png'></body>"
    )
    script = "document.documentElement.dataset.ready = 1; console.error('broken'); return 1;"
    found, console, requests = visit(page.replace("<html>", "<html data-ready=1>"), script, tmp_path)
    assert found == 1
    assert any("broken" in line for line in console)
    assert requests == {"http://example.test/a.png"}


@needs_browser
def test_charts_that_were_made_anew_while_hidden_have_their_width_when_shown(page, tmp_path):
    script = """
        const wait = () => new Promise((done) => setTimeout(done, 500));
        const choose = async (place) => {
          const choice = document.getElementById('dataset');
          choice.selectedIndex = place; choice.dispatchEvent(new Event('change')); await wait();
        };
        await choose(1);
        Object.defineProperty(window, 'innerWidth', { value: innerWidth - 100 });
        dispatchEvent(new Event('resize'));
        await wait(); await choose(0);
        const shown = [...document.querySelectorAll('.chart')].filter((chart) => chart.clientWidth);
        return shown.map((chart) => [chart.clientWidth, chart.querySelector('svg').getBoundingClientRect().width]);
    """
    widths, _, _ = visit(page, script, tmp_path)
    assert len(widths) > 5
    assert all(drawn == room > 300 for room, drawn in widths)


@needs_browser
def test_page_sorts_filters_and_copies_its_table(visited):
    found, _, _ = visited
    assert found["first"] == ["standard", "logits"]
    assert found["down"] == [["logits", "standard"], "descending"]
    assert found["up"] == [["standard", "logits"], "ascending"]
    assert found["filtered"] == [["logits"], "1 of 5 rows"]
    head, rules, line = found["copied"]["markdown"].splitlines()
    assert head.startswith("| run | T |")
    assert rules.startswith("| :--- | ---: |")
    assert line.startswith("| logits | 4 |")
    assert r"\begin{tabular}{lr" in found["copied"]["latex"]
    assert r"$\pm$" in found["copied"]["latex"]
    assert found["copied"]["csv"].splitlines()[1].startswith('"logits","4"')


@needs_browser
def test_page_shows_a_picked_run_everywhere(visited):
    found, _, _ = visited
    name, rows, legends, entries, pressed, opacities = found["picked"]
    assert (name, rows, pressed) == ("standard", 1, "true")
    assert legends == 2
    assert entries == 1
    assert opacities > len(found["faded"])
    assert found["unpicked"]
    assert set(found["clicked"]) <= {"standard", "logits"}
    assert re.fullmatch(r"epoch \d: ( (standard|logits) [\d.]+){2}", found["readout"])


@needs_browser
def test_page_takes_a_run_out_of_its_charts_and_changes_its_theme(visited):
    found, _, _ = visited
    assert found["toggled"] == ["false", True]
    assert len(set(found["themes"])) == 2


@needs_browser
def test_page_shows_hostile_names_as_text(visited):
    found, _, _ = visited
    assert found["hacked"] is None
    assert found["tags"] == 0
    assert f"python train.py {EVIL}" in found["commands"][1]
    assert EVIL in found["second"]
    assert r"\x1b[31mred\nline" in found["second"]
    assert any(name.startswith("{{script}}xx") and len(name) <= 120 for name in found["second"])
    assert EVIL[:10] in "".join(found["axis"])
    assert found["image"] == 8
    assert found["broad"]
    width, height = found["narrow"]
    assert width <= 390
    assert height < 400


@needs_browser
def test_page_has_the_tables_of_teachers_and_of_tuning_with_their_data(tmp_path):
    teaching = {"teacher": "t", "teacher_params": 9, "teacher_test_acc": 0.9, "taught": True}
    for seed, teacher in product(range(3), range(3)):
        acc = 0.8 + ((seed * 7 + teacher * 5) % 4) / 100
        about = {"method": "logits", "variant": f"teacher_seed={teacher}", "teacher_id": f"t{teacher}", **teaching}
        put_result(tmp_path / f"a{seed}{teacher}", seed=seed, test_acc=acc, dataset="A", **about)
    for method, i in product(("logits", "dkd"), range(5)):
        about = {"method": method, "knobs": {"T": float(i + 1)}, "dataset": "B", **teaching}
        put_result(tmp_path / f"{method}{i}", val_acc=0.5 + i / 100, test_acc=0.5, **about)
    script = """
        const choice = document.getElementById('dataset');
        const shown = (what) => [...document.querySelectorAll(what)].filter((part) => !part.hidden);
        const seen = () => shown('.further').map((part) => [
          part.querySelector('h2').textContent, ...[...part.querySelectorAll('tr')].map((row) => row.cells.length)]);
        const links = () => shown('#nav li').map((part) => part.textContent);
        const found = [seen(), links()];
        choice.selectedIndex = 1; choice.dispatchEvent(new Event('change')); found.push(seen(), links());
        return [...found, [...document.querySelectorAll('.further')].map((part) => part.textContent).join('')];
    """
    (first, links, second, more, text), console, _ = visit(made([tmp_path]), script, tmp_path)
    assert console == []
    across = ["New teachers and new seeds", 12, 12]
    assert first == [across]
    assert second == [["Tuning", 5, 5, 5], across]
    assert "logits on A33" in text  # three teachers, three seeds
    assert (links.count("Tuning"), more.count("Tuning")) == (0, 1)  # none to a section that is not shown
    assert "Compare methods in one column only." in text


def test_page_holds_no_address_and_is_small(page):
    addresses = set(re.findall(r"https?://[\w.]+", page))
    assert addresses <= {"https://vega.github.io"}  # the name of the charts' language
    assert len(page) < 1_000_000


def test_page_names_its_scripts_by_hash(page):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert "unsafe-inline" not in policy.split(";")[1]


def test_packed_has_no_character_of_html():
    page = f'<script type="text/plain" id="data">{packed({"view": {"a": EVIL}})}</script>'
    assert page.count("<") == 2
    assert unpacked(page) == {"a": EVIL}
    with pytest.raises(ValueError, match="not a page"):
        unpacked("<html>")


def test_bundle_is_kept_and_made_anew_where_it_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("vl_convert.javascript_bundle", lambda snippet: f"library; {snippet}")
    first = bundle.compressed()
    (path,) = (tmp_path / "kd").iterdir()
    assert path.read_bytes() == first
    assert bundle.code(first).startswith("(() => {library; window.vegaEmbed")
    path.write_bytes(first[: len(first) // 2])
    assert bundle.compressed() == first
    assert path.read_bytes() == first


def test_bundle_needs_no_place_to_be_kept_in(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("vl_convert.javascript_bundle", lambda snippet: snippet)
    assert bundle.code(bundle.compressed()).strip()


def test_committed_page_is_small_and_has_images():
    """That its figures are those of the records is tested with the tables of the README."""
    page = (ROOT / "docs" / "results" / "seed_table" / "index.html").read_text("utf-8")
    assert len(page) < 1_500_000
    assert len(unpacked(page)["fidelity"]["pixels"]) > 50


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to check the syntax with")
def test_page_script_is_valid(tmp_path, page):
    script = page[page.rindex("<script>") + len("<script>") : page.rindex("</script>")]
    (tmp_path / "page.js").write_text(script, encoding="utf-8")
    assert subprocess.run(["node", "--check", tmp_path / "page.js"], capture_output=True).returncode == 0


def test_fidelity_tells_why_nothing_is_shown(tmp_path):
    put_result(tmp_path / "a")
    found = unpacked(made([tmp_path]))["fidelity"]
    assert found == {"why": "no run has its predictions.npz beside its record"}


def test_fidelity_refuses_images_of_another_data_set(tmp_path):
    for seed in range(3):
        put(tmp_path / f"s{seed}", "standard", seed, noisy(seed))
        put(tmp_path / f"a{seed}", "logits", seed, noisy(seed, 0.3), TEACHER)

    def refuse(study):
        raise UserError("their labels differ")

    with pytest.raises(UserError, match="their labels differ"):
        made([tmp_path], refuse)


def test_fidelity_chooses_some_of_many_rows(tmp_path):
    for i in range(12):
        put(tmp_path / f"a{i}", "logits", 0, noisy(i, 0.3), TEACHER, knobs={"T": float(i + 1)}, val_acc=0.5 + i / 100)
    put(tmp_path / "s", "standard", 0, noisy(20), val_acc=0.5)
    found = unpacked(made([tmp_path]))["fidelity"]
    assert [network["label"] for network in found["networks"]][:3] == ["teacher", "standard", "logits T=6"]
    assert len(found["networks"]) == 9
    assert "7 of 12 rows, the best of each method and of the rest by validation accuracy" in found["note"]


def test_fidelity_names_rows_as_the_table_does(tmp_path):
    """Few of the rows are looked at image by image: less tells these apart."""
    put(tmp_path / "s", "standard", 0, noisy(20))
    for i, knobs in enumerate([{"T": 4.0, "alpha": 0.1}, {"T": 8.0, "alpha": 0.1}]):
        put(tmp_path / f"a{i}", "logits", 0, noisy(i, 0.3), TEACHER, knobs=knobs)
    put_result(tmp_path / "b", method="logits", T=4.0, alpha=0.5, dataset="CIFAR-10", test_acc=0.5, taught=True)
    put_result(tmp_path / "c", method="standard", dataset="CIFAR-10", test_acc=0.5, epochs=99, student="cnn16")
    shown = unpacked(made([tmp_path], baseline="standard epochs=30"))
    labels = {row["id"]: row["label"] for row in shown["rows"]}
    networks = {network["id"]: network["label"] for network in shown["fidelity"]["networks"][1:]}
    assert networks.items() <= labels.items()
    assert set(networks.values()) == {"standard epochs=30", "logits T=4 alpha=0.1", "logits T=8 alpha=0.1"}


def test_seeds_make_a_variance_and_one_seed_makes_none():
    summary = summarize([*seeds(ALONE, 0.8, 0.82, 0.84, test_images=10_000), changed(ALONE, method="x")])
    rows = {row["label"]: row for row in view(summary, ())["rows"]}
    assert rows["standard"]["variance"] == {"seeds": 2.0, "images": 0.384}  # sqrt(0.82 * 0.18 / 10,000)
    assert rows["x"]["variance"] is None


def _counts(*rows):
    """In how many seeds each image is right, by row."""
    return [sum(logits.argmax(axis=1) == LABELS for logits in seeds) for seeds in rows]


def test_images_of_the_page_are_those_of_their_titles(page):
    """Fixed and broken by counting; the most confident first, by what both are sure of."""
    found = unpacked(page)["fidelity"]
    base, student = ([noisy(seed, towards) for seed in range(3)] for towards in (0.0, 0.3))
    right, wrong = ([count == n for count in _counts(base, student)] for n in (3, 0))  # of three seeds most are all
    (name,) = (network["id"] for network in found["networks"] if network["label"] == "logits")
    differ, fixed, broken = found["images"][name]
    assert (fixed["count"], broken["count"]) == ((wrong[0] & right[1]).sum(), (right[0] & wrong[1]).sum())
    assert fixed["count"] != broken["count"]
    assert all(right[1][image["place"]] for image in fixed["images"])
    mean = np.mean([softmax(seed, axis=1) for seed in student], axis=0)
    sure = np.minimum(mean.max(axis=1), softmax(TEACHER, axis=1).max(axis=1))
    assert differ["count"] == (mean.argmax(axis=1) != TEACHER.argmax(axis=1)).sum()
    order = [sure[image["place"]] for image in differ["images"]]
    assert np.diff(order).max() < 1e-3  # stored logits are rounded
    assert order[0] - order[-1] > 0.01
    (figures,) = (network["figures"] for network in found["networks"] if network["label"] == "logits")
    agreement = [100 * np.mean(seed.argmax(axis=1) == TEACHER.argmax(axis=1)) for seed in student]
    assert figures["agreement"] == pytest.approx([np.mean(agreement), np.std(agreement, ddof=1)], abs=0.01)
