import pytest

from kd.errors import UserError
from kd.report.arguments import out_dir, parser


def test_out_dir_follows_no_link_that_it_was_not_given(tmp_path):
    """A "report" in a stranger's runs may lead to any folder."""
    (tmp_path / "runs").mkdir()
    arguments = parser("", "").parse_args([str(tmp_path / "runs")])
    assert out_dir(arguments) == tmp_path / "runs" / "report"
    (tmp_path / "runs" / "report").symlink_to(tmp_path)
    with pytest.raises(UserError, match="report is a link; name the place of the report by --out"):
        out_dir(arguments)
    given = parser("", "").parse_args([str(tmp_path / "runs"), "--out", str(tmp_path / "runs" / "report")])
    assert out_dir(given) == tmp_path / "runs" / "report"
