"""Fixtures for permissions, which tests of data have, too."""

from tests.data.conftest import as_nobody, public_path

__all__ = ["as_nobody", "public_path"]
