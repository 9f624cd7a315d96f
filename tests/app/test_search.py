"""What a search tries of a command; no trial is made. scripts/search.py has its tests in tests/scripts/."""

import pytest
from omegaconf import OmegaConf

from kd.app.compose import compose, plain
from kd.app.search import plan, usual_spans
from tests.common import CONF, SMALL


@pytest.mark.parametrize("method", sorted(path.stem for path in (CONF / "method").glob("*.yaml")))
def test_span_that_is_searched_by_default_is_around_the_set_value(method):
    """And not all that is possible: T could be a million."""
    command = compose([f"method={method}", "data=digits"])
    for name, span in usual_spans(command.cfg, plain(command.cfg)["spec"]["ranges"]).items():
        low, high, *log = span.split(":")
        assert float(low) <= OmegaConf.select(command.cfg, name) <= float(high)
        assert float(high) <= (100 * float(low) if log else 1000)


def test_knob_of_ones_own_is_searched_as_its_range_says_however_its_value_is_written(tmp_path):
    """YAML has a whole number in `beta: 1`, and the range decimal ones."""
    text = (CONF / "method" / "at.yaml").read_text().replace("beta: 1000.0", "beta: 1")
    assert "beta: 1\n" in text
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text(text)
    given = [*SMALL, "method=mine", "data.val_fraction=0.7"]

    def ranges(*spans):
        return {part.name: part for part in plan(tmp_path / "found", given, spans, 0, 1, tmp_path).ranges}

    assert str(ranges()["beta"]) == "beta=0.5:10:log"
    narrowed = ranges("beta=1:10:log")["beta"]
    assert (narrowed.low, type(narrowed.low)) == (1.0, float)
    assert ranges("beta=0.1:10:log")["beta"].low == 0.1
