from tests import processes
from tests.common import ROOT


def test_kill_finds_the_same_end_after_a_kill_at_a_file_operation(tmp_path):
    """The program that scripts/kill.py becomes, which `test_programs.py` starts."""
    # Before anything is written, while the teacher is trained, and while the student is.
    done = processes.run(ROOT / "tests" / "fuzz" / "kill.py", "--every", "70", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills at" in done.stdout
    assert "0 with another end" in done.stdout
