import subprocess
import sys

import pytest

from kd.app.loading import loading
from kd.errors import UserError
from tests.common import ROOT

LOADED = """
import sys
from kd.app.loading import loading
with loading():
    import kd.app.build
print("scipy.stats" in sys.modules, "scipy.signal" in sys.modules)
import scipy.signal
print(scipy.signal.get_window("boxcar", 3).tolist())
"""
USED = """
import sys
from kd.app.loading import loading
with loading():
    from scipy.signal import get_window
    import scipy.signal
    window = scipy.signal.windows.hann(3).tolist()
print(get_window("boxcar", 3).tolist(), window, sys.modules["scipy.signal"].get_window is get_window)
"""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ModuleNotFoundError("No module", name="lightning"), r"^lightning is not installed; install what is missing"),
        (
            RuntimeError("operator torchvision::nms does not exist\nmore"),
            r"loaded \(operator torchvision::nms does not",
        ),
    ],
)
def test_what_cannot_be_loaded_is_told_in_a_line(error, line):
    with pytest.raises(UserError, match=line), loading():
        raise error


def printed(program):
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_a_start_leaves_scipy_signal_out_and_it_is_whole_for_whoever_imports_it_then():
    assert printed(LOADED) == ["False False", "[1.0, 1.0, 1.0]"]


def test_what_uses_scipy_signal_while_it_is_loaded_gets_the_real_one():
    assert printed(USED) == ["[1.0, 1.0, 1.0] [0.0, 1.0, 0.0] True"]
