"""The documentation site: it builds without a warning, its links lead somewhere, its commands and blocks work.

Commands of every page are composed here; those of the README and of pages of docs/ also run, in test_readme.py.
"""

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import types
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import yaml

import kd
from kd.app.check import check_command
from kd.app.cli import prepared
from kd.app.compose import compose
from tests.common import CONF, ROOT

DOCS = ROOT / "docs"
PAGES = [DOCS / "index.md", DOCS / "protocol.md", *sorted((DOCS / "guide").glob("*.md"))]
TEXTS = {page.stem: page.read_text(encoding="utf-8") for page in PAGES}
MAX_MEGABYTES = 12
MAX_PAGES = 40


class Page(HTMLParser):
    """What a page refers to, and what can be referred to on it."""

    def __init__(self, file):
        super().__init__()
        self.ids, self.links, self.loaded, self.math, self.text = set(), [], [], 0, []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        self.math += tag == "math"
        if tag in ("a", "area") and given.get("href"):
            self.links.append(given["href"])
        if tag in ("img", "script", "iframe") and given.get("src"):
            self.loaded.append(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(given["href"])

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site, by the command of docs/conf.py."""
    folder = tmp_path_factory.mktemp("site")
    (command,) = re.findall(r"`(sphinx-build [^`]+)`", (DOCS / "conf.py").read_text(encoding="utf-8"))
    job = command.replace("build/site", str(folder)).split()
    job[0] = str(Path(sys.executable).with_name(job[0]))
    done = subprocess.run(
        [*job, "-q", "-d", str(tmp_path_factory.mktemp("trees"))], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder


@pytest.fixture(scope="module")
def pages(site):
    downloads = site / "_downloads"  # the report's page among them
    return {file: Page(file) for file in site.rglob("*.html") if downloads not in file.parents}


def test_site_is_of_a_size_that_a_reader_survives(site, pages):
    assert {f"{page.relative_to(DOCS).with_suffix('.html')}" for page in PAGES} <= {
        str(f.relative_to(site)) for f in pages
    }
    assert len(pages) <= MAX_PAGES
    assert sum(file.stat().st_size for file in site.rglob("*") if file.is_file()) < MAX_MEGABYTES * 1e6


def test_every_internal_link_leads_somewhere(site, pages):
    broken = []
    for file, page in pages.items():
        for link in page.links + page.loaded:
            scheme, host, path, _, anchor = urlsplit(link)
            if scheme or host:
                continue
            target = (file.parent / unquote(path)).resolve() if path else file
            found = target.is_relative_to(site) and target.is_file()
            if not found or (anchor and target in pages and unquote(anchor) not in pages[target].ids):
                broken.append((file.name, link))
    assert broken == []


def test_nothing_is_loaded_from_the_network(pages):
    assert [src for page in pages.values() for src in page.loaded if re.match(r"(\w+:)?//", src)] == []


def test_every_page_is_in_the_navigation(site, pages):
    shown = {(site / unquote(link.partition("#")[0])).resolve() for link in pages[site / "index.html"].links}
    hidden = {site / name for name in ("genindex.html", "index.html", "search.html")}
    assert pages.keys() - shown <= hidden


def test_every_formula_is_rendered(site, pages):
    page = pages[site / "methods.html"]
    source = (DOCS / "methods.md").read_text(encoding="utf-8")
    assert page.math == len(re.findall(r"^```math|\$`", source, re.MULTILINE)) > 100
    formulas = re.findall(r"<math.*?</math>", (site / "methods.html").read_text(encoding="utf-8"), re.DOTALL)
    assert [formula for formula in formulas if "\\" in formula] == []  # no command was left as it is


def test_api_page_has_every_public_name(site, pages):
    ids = pages[site / "guide" / "api.html"].ids
    names = {f"kd.{name}" for name in kd.__all__ if name not in ("losses", "methods")}
    losses = [name for name, value in vars(kd.losses).items() if isinstance(value, types.FunctionType)]
    names |= {f"kd.losses.{name}" for name in losses if not name.startswith("_")}
    assert names - ids == set()


def test_knobs_page_has_every_choice_and_setting(site, pages):
    text = " ".join(pages[site / "guide" / "knobs.html"].text)
    words = set(re.findall(r"[\w.]+", text))
    for group in ("method", "data", "student", "recipe", "trainer", "speed", "logger", "debug", "hydra/launcher"):
        assert {file.stem for file in (CONF / group).glob("*.yaml")} <= words, group
    assert set(yaml.safe_load((CONF / "config.yaml").read_text())) - {"defaults", "hydra", "spec"} <= words
    for group, file in (("data", "shared/default"), ("recipe", "default"), ("speed", "fast"), ("trainer", "auto")):
        settings = yaml.safe_load((CONF / group / f"{file}.yaml").read_text())
        names = {f"{group}.{name}" for name in settings if name not in ("_target_", "defaults", "augment")}
        assert names <= words
    assert {"data.augment.crop", "recipe.clip_norm"} <= words
    assert re.search(r"data\.augment\.crop\s+4\s+whole \[0, inf\)\s+pixels of padding before a random crop", text)


def test_notebook_page_has_every_cell_and_picture(site, pages):
    cells = json.loads((ROOT / "notebooks" / "distillation.ipynb").read_text(encoding="utf-8"))["cells"]
    page = pages[site / "guide" / "notebook.html"]
    text = "".join(page.text)
    for cell in cells:
        if cell["cell_type"] == "code":
            assert "".join(cell["source"]).strip() in text
    pictures = sum("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", ()))
    assert len([src for src in page.loaded if src.startswith("data:image/png")]) == pictures > 0
    assert "$" not in re.sub(r'"[^"\n]*"', "", text)  # formulas are formulas


def test_temperature_figures_are_those_of_the_teachers():
    with np.load(DOCS / "results" / "seed_table" / "logits0" / "predictions.npz") as arrays:
        logits, label = arrays["teacher_logits"][0].astype(float), arrays["labels"][0]
    script = (DOCS / "_ext" / "temperature.html").read_text(encoding="utf-8")
    shown = [float(value) for value in re.search(r"z = \[(.*)\]", script)[1].split(",")]
    np.testing.assert_allclose(shown, logits, atol=0.005)
    assert label == np.argmax(logits) == 3  # a cat
    picture = (DOCS / "guide" / "temperature.svg").read_text(encoding="utf-8")
    shares = [float(value) / 100 for value in re.findall(r">([\d.]+) %<", picture)]
    wanted = [[math.exp(value / T) for value in shown] for T in (1, 4, 20)]
    np.testing.assert_allclose(shares, [v / sum(powers) for powers in wanted for v in powers], rtol=0.1, atol=5e-4)


def test_front_page_counts_right():
    text = TEXTS["index"]
    words = {"ten": 10}
    methods, networks, data = re.search(r"(\w+)\s+methods, (\w+) networks, (\w+) kinds of data", text).groups()
    assert int(methods) == len(list((CONF / "method").glob("*.yaml")))
    ours = {file.stem for file in (CONF / "student").glob("*.yaml")} - {"custom", "timm", "torchvision"}
    assert int(networks) == len(ours)
    assert words[data] == len(list((CONF / "data").glob("*.yaml")))


# Commands and blocks


PROGRAM = r"(PYTHONPATH=\w+ )?(python|pip|tensorboard|pytest|sphinx-build) "
"""How a command begins."""


def lines(text):
    """The commands of a page's blocks."""
    blocks = re.findall(r"^```(?:sh|text)?\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    every = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [re.split(r"\s+#\s", line)[0].strip() for line in every]
    return [line for line in found if re.match(PROGRAM, line)]


def inline(text):
    """The whole commands that stand in backticks."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return [code for code in re.findall(r"`(python (?:train\.py|scripts/)[^`]*)`", prose) if "..." not in code]


ELSEWHERE = sorted({*DOCS.glob("*.md"), *DOCS.glob("results/*.md")} - {*PAGES})
EVERYWHERE = [*TEXTS.values(), *(page.read_text(encoding="utf-8") for page in (*ELSEWHERE, ROOT / "README.md"))]
COMMANDS = list(dict.fromkeys(command for text in EVERYWHERE for command in lines(text) + inline(text)))
PLACES = r"RUN_DIR|SWEEP_DIR|(?<!partition=)NAME|KEY|\$|\.\.\.|=S |(?<!my_conf )method=embedding|experiment=mine"
"""What stands for something, and files that other tests have."""
NOTHING = r"python train\.py --(help|cfg job( --resolve)?)"
"""What composes no settings of its own."""
COMPOSED = [
    command
    for command in COMMANDS
    if re.match(r"(PYTHONPATH=\w+ )?python train\.py", command)
    and not re.search(PLACES, command)
    and not re.fullmatch(NOTHING, command)
]
SCRIPTS = [command for command in COMMANDS if command.startswith("python scripts/")]


@pytest.fixture
def what_commands_name(tmp_path, monkeypatch):
    """A folder with the method of docs/extending.md and with weights, where the commands look for them."""
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", (DOCS / "extending.md").read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "my_conf" / "method").mkdir(parents=True)
    (tmp_path / "my_conf" / "method" / "embedding.yaml").write_text(example)
    for weights in ("mine", "ckpt_epoch_240"):
        (tmp_path / f"{weights}.pth").touch()
    (tmp_path / "docs").symlink_to(DOCS)
    (tmp_path / "corrupted").mkdir()


@pytest.mark.usefixtures("what_commands_name")
@pytest.mark.parametrize("command", COMPOSED)
def test_training_command_is_composed(command):
    argv = shlex.split(re.sub(r"^PYTHONPATH=\w+ ", "", command))[2:]
    argv = argv[: argv.index("--cfg")] if "--cfg" in argv else argv
    known, single = prepared(argv)
    if single is None:
        values = [override for override in known.overrides if not override.startswith("hydra")]
        for job in {tuple(map(chosen, values)) for chosen in (first, last)}:
            check_command(compose(job, config_dir=known.config_dir))


def first(override):
    """An override with the first of its values."""
    return override if "[" in override or "{" in override else override.partition(",")[0]


def last(override):
    """An override with the last of its values."""
    name, _, values = override.partition("=")
    return override if "[" in override or "{" in override else f"{name}={values.rpartition(',')[2]}"


@pytest.mark.parametrize("command", SCRIPTS)
def test_option_of_a_program_exists(command):
    script, *arguments = shlex.split(command)[1:]
    assert list((ROOT / "tests" / "scripts").glob(f"test_{Path(script).stem}*.py"))
    source = (ROOT / script).read_text(encoding="utf-8")
    started = [f"{package}.__main__" for package in re.findall(r'"-m", "([\w.]+)"', source)]
    for module in [*re.findall(r"^from (kd[\w.]*) import", source, re.MULTILINE), *started]:
        file = ROOT / f"{module.replace('.', '/')}.py"
        source += file.read_text(encoding="utf-8") if file.is_file() else ""
    missing = [option for option in arguments if option.startswith("--") and f'"{option}"' not in source]
    assert missing == []


def test_commands_of_repdistiller_are_those_of_methods_with_the_defaults_that_are_said():
    rows = re.findall(
        r"^\| `--distill[^|]*\| `method=(\w+)([^`]*)`(?: \(([^):]*))?", TEXTS["coming_from"], re.MULTILINE
    )
    assert len(rows) == 15
    for method, typed, said in rows:
        settings = yaml.safe_load((CONF / "method" / f"{method}.yaml").read_text(encoding="utf-8"))
        knobs = {name for name, value in settings.items() if isinstance(value, int | float)}
        assert {part.partition("=")[0] for part in shlex.split(typed)} <= knobs | {"method.terms"}, method
        for name, value in re.findall(r"(\w+)=([\d.]+)", said):
            assert settings[name] == float(value), method


def test_no_command_is_without_a_test():
    blocks = [b for text in TEXTS.values() for b in re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)]
    every = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    others = [line for line in every if not re.match(r"(PYTHONPATH=\w+ )?python (train\.py|scripts/)", line)]
    others = [re.split(r"\s+#\s", line)[0].strip() for line in others]
    assert set(others) <= {"pip install -e .", "tensorboard --logdir runs"}
    assert len(COMPOSED) > 20


@pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:.*does not have many workers")
def test_python_blocks_run(tmp_path, monkeypatch, capsys):
    text = "\n".join(TEXTS.values())
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["notebook"])
    for record in (DOCS / "results" / "seed_table").glob("*/result.json"):
        (tmp_path / "runs" / record.parent.name).mkdir(parents=True)
        shutil.copy(record, tmp_path / "runs" / record.parent.name)
    os.symlink(DOCS / "results" / "seed_table" / "logits0", "RUN_DIR")
    for block in blocks:
        exec(block, {})
    printed = capsys.readouterr().out
    assert re.search(r"^0\.8\d\d$", printed, re.MULTILINE)  # F1
    assert re.search(r"^\d+\.\d%, one of \d\d runs here$", printed, re.MULTILINE)
    assert re.search(r"^\d\d\.\d\d % logits \d$", printed, re.MULTILINE)
    assert re.search(r"^\{'hard': .*\}$", printed, re.MULTILINE)


def test_links_out_of_docs_are_pages_or_files():
    """The table of docs/_ext/made.py names pages that exist."""
    source = (DOCS / "_ext" / "made.py").read_text(encoding="utf-8")
    named = dict(re.findall(r'^    "([\w./]+)": "(docs/[\w./]+)",$', source, re.MULTILINE))
    assert named
    assert all((ROOT / place).is_file() for pair in named.items() for place in pair)
