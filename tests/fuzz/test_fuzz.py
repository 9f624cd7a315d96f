import os
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kd.app.cli import prepared
from kd.app.explain import explain
from kd.errors import UserError
from kd.runs import predictions, results
from tests.common import SMALL
from tests.fuzz import command, datasets, files, mutate, workers
from tests.fuzz.originals import make_images
from tests.report.made import ALONE

bounded = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example, HealthCheck.data_too_large],
)
rngs = st.randoms(use_true_random=False)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """The originals that take no training: a data set, a record and predictions."""
    folder = tmp_path_factory.mktemp("originals")
    make_images(folder)
    (folder / "finished").mkdir()
    results.write(ALONE, folder / "finished" / results.FILE)
    logits = np.linspace(-3, 3, 12, dtype=np.float32).reshape(6, 2)
    found = predictions.Predictions(np.arange(6) % 2, logits, logits[::-1])
    predictions.write(found, folder / "finished" / predictions.FILE)
    return folder


def tried(case, rng, originals, tmp_path_factory):
    """Try a case in this process; a refusal has to be a line, and everything else is the case's own error."""
    here = tmp_path_factory.mktemp("here")
    before = Path.cwd()
    os.chdir(here)
    try:
        case(rng, originals, here)
        refusal = None
    except (UserError, workers.RefusedError) as error:
        refusal = str(error)
    finally:
        os.chdir(before)
    assert refusal is None or workers.wrong_line(refusal) is None, refusal


@bounded
@given(rng=rngs)
def test_images_of_any_content_are_refused_or_read_as_pil_does(rng, originals, tmp_path_factory):
    tried(datasets.images, rng, originals, tmp_path_factory)


@bounded
@given(rng=rngs)
def test_predictions_of_any_content_are_refused_or_read_right(rng, originals, tmp_path_factory):
    tried(files.predictions_alone, rng, originals, tmp_path_factory)


@bounded
@given(rng=rngs)
def test_records_of_any_content_are_refused_or_read_right(rng, originals, tmp_path_factory):
    tried(files.record_alone, rng, originals, tmp_path_factory)


@bounded
@given(rng=rngs)
def test_parquet_files_of_any_content_are_refused_or_read_as_pyarrow_does(rng, originals, tmp_path_factory):
    tried(datasets.parquets, rng, originals, tmp_path_factory)


@settings(bounded, max_examples=12)
@given(rng=rngs)
def test_command_lines_of_any_form_are_refused_in_a_line_or_composed(rng, originals, tmp_path_factory):
    def case(rng, originals, here):
        argv = command.line(rng, list(SMALL)).argv
        try:
            prepared(argv)
        except Exception as error:  # Hydra's own may be any; `main` prints what `explain` makes of it
            raise workers.RefusedError(explain(error, argv)) from error

    tried(case, rng, originals, tmp_path_factory)


# --- the machinery: it has to find what it looks for


def outcome(case, tmp_path):
    (found,) = workers.try_cases(case, "kind", [3], tmp_path)
    return found


def test_a_case_that_raises_is_a_traceback(tmp_path):
    found = outcome(lambda *_: 1 // 0, tmp_path)
    assert found.verdict == "traceback"
    assert "ZeroDivisionError" in found.note


def test_a_case_that_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "SECONDS", 0.2)

    def busy(*_):
        while True:
            pass

    assert outcome(busy, tmp_path).verdict == "hang"


def test_a_case_that_takes_too_much_memory_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "MEGABYTES", 100)
    assert outcome(lambda *_: b"x" * (300 * 10**6), tmp_path).verdict == "memory"
    assert outcome(lambda *_: b"x" * (10 * 10**6), tmp_path).verdict == "accepted"


def test_a_case_that_crashes_is_told_and_the_next_one_tried(tmp_path):
    verdicts = [
        one.verdict
        for one in workers.try_cases(
            lambda rng, *_: os.kill(os.getpid(), 9) if rng.random() < 0.5 else None, "kind", range(12), tmp_path
        )
    ]
    assert len(verdicts) == 12
    assert set(verdicts) == {"accepted", "crash"}


def test_a_refusal_that_is_no_line_is_nonsense(tmp_path):
    def refuse(*_):
        raise UserError("red \x1b[31m")

    assert outcome(refuse, tmp_path).verdict == "nonsense"


def test_command_values_that_changed_are_nonsense(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("seed: 1\nT: 4.0\n")
    (tmp_path / ".hydra" / "hydra.yaml").write_text("hydra: {runtime: {choices: {method: logits}}}\n")
    command.compare(tmp_path, {"seed": "1", "T": "4", "method": "logits"})
    for wrong in ({"seed": "2"}, {"T": "x"}, {"method": "feature"}):
        with pytest.raises(workers.NonsenseError):
            command.compare(tmp_path, wrong)


def test_damage_is_the_same_for_the_same_seed():
    assert mutate.damage(random.Random(5), bytes(1000)) == mutate.damage(random.Random(5), bytes(1000)) != bytes(1000)
