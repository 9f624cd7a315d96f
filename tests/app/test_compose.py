import pytest

from kd.app.compose import compose
from kd.errors import UserError

BOMB = "b0: &b0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"b{i}: &b{i} [{','.join([f'*b{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


def own(tmp_path, text):
    file = tmp_path / "student" / "own.yaml"
    file.parent.mkdir()
    file.write_text(text)
    return file


def test_compose_refuses_aliases_of_aliases(tmp_path):
    file = own(tmp_path, BOMB)
    with pytest.raises(UserError, match=r"aliases stand for 1,234,567,909 values") as error:
        compose(["student=own"], config_dir=tmp_path)
    assert str(error.value).startswith(f"{file}: ")


def test_compose_refuses_a_file_that_is_too_large_for_settings(tmp_path):
    file = own(tmp_path, "a: " + "x" * 100_001)
    with pytest.raises(UserError, match="too large for a file of settings"):
        compose(["student=own"], config_dir=tmp_path)
    file.write_text("a: " + "x" * 1000)
    compose(["student=own"], config_dir=tmp_path)


def test_compose_takes_aliases_that_are_few(tmp_path):
    own(tmp_path, "_target_: kd.models.cnn.CNN\nscale: &s 3\nhead_dropout: *s\n")
    command, _ = compose(["student=own"], config_dir=tmp_path)
    assert command.cfg.student.head_dropout == 3


def test_compose_sees_a_file_that_has_changed(tmp_path):
    """The tests keep what Hydra reads from a file (tests/settings.py), for as long as it is the same."""
    file = own(tmp_path, "_target_: kd.models.cnn.CNN\nscale: 3\n")
    for scale in (3, 14, 5):
        file.write_text(f"_target_: kd.models.cnn.CNN\nscale: {scale}\n")
        for _ in range(2):
            command, _ = compose(["student=own"], config_dir=tmp_path)
            assert command.cfg.student.scale == scale
            command.cfg.student.scale = 0
