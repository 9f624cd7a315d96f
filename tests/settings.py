"""Hydra's reading of settings files, each done once a process: every run of the tests composes the same thirty."""

import copy
import os
from importlib import resources
from pathlib import Path
from typing import Any

from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult


def keep_files() -> None:
    """Keep what Hydra reads from a file for as long as the file is the same; it gets a copy each time."""
    Plugins.instance()  # which registers the two
    _keep(SourcesRegistry.instance().resolve("file"), Path)
    _keep(SourcesRegistry.instance().resolve("pkg"), resources.files)


def _keep(source: Any, folder: Any) -> None:
    read, kept = source.load_config, {}

    def load_config(self: Any, config_path: str) -> ConfigResult:
        file = os.fspath(folder(self.path).joinpath(self._normalize_file_name(config_path)))
        status = os.stat(file) if os.path.exists(file) else None
        key = self.path, self.provider, config_path, status and (status.st_ino, status.st_size, status.st_mtime_ns)
        if status is None or key not in kept:
            kept[key] = read(self, config_path)
        return copy.deepcopy(kept[key])

    source.load_config = load_config
