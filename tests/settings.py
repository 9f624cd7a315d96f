"""Hydra's composition, each part done once a process: every run of the tests composes the same files, often anew.

What is typed is parsed and applied each time. Kept are, for as long as no file of conf/ changes: what a file holds,
which files a choice of groups takes, and what these are together.
"""

import copy
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import hydra._internal.config_loader_impl as loading
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult

import kd.app.compose as app


def keep_settings() -> None:
    """Keep files and compositions in this process; each caller gets a copy."""
    Plugins.instance()  # which registers the two
    _keep_files(SourcesRegistry.instance().resolve("file"), Path)
    _keep_files(SourcesRegistry.instance().resolve("pkg"), resources.files)
    _keep_choices()
    _keep_merged()


def _keep_files(source: Any, folder: Any) -> None:
    read, kept = source.load_config, {}

    @functools.wraps(read)
    def load_config(self: Any, config_path: str) -> ConfigResult:
        file = os.fspath(folder(self.path).joinpath(self._normalize_file_name(config_path)))
        status = os.stat(file) if os.path.exists(file) else None
        key = self.path, self.provider, config_path, status and _version(status)
        if status is None or key not in kept:
            kept[key] = read(self, config_path)
        return copy.deepcopy(kept[key])

    source.load_config = load_config


def _keep_choices() -> None:
    make: Callable[..., DefaultsList] = loading.create_defaults_list
    kept: dict[Any, DefaultsList] = {}

    @functools.wraps(make)
    def create_defaults_list(
        repo: Any, config_name: str | None, overrides_list: Sequence[Any], prepend_hydra: bool, skip_missing: bool
    ) -> DefaultsList:
        read_from = _read_from(repo)
        parts = repo, config_name, overrides_list, prepend_hydra, skip_missing
        if read_from is None:
            return make(*parts)
        values = Overrides(repo, overrides_list).config_overrides
        groups = [override.input_line for override in overrides_list if not any(override is value for value in values)]
        key = read_from, config_name, tuple(groups), prepend_hydra, skip_missing
        if key not in kept:
            kept[key] = make(*parts)
        found = kept[key]
        return dataclasses.replace(found, config_overrides=values)

    loading.create_defaults_list = create_defaults_list


def _keep_merged() -> None:
    merge, kept = loading.ConfigLoaderImpl._compose_config_from_defaults_list, {}

    @functools.wraps(merge)
    def compose(self: Any, defaults: Sequence[Any], repo: Any) -> Any:
        read_from = _read_from(repo)
        if read_from is None:
            return merge(self, defaults, repo)
        key = read_from, *(tuple(vars(default).values()) for default in defaults)
        if key not in kept:
            kept[key] = merge(self, defaults, repo)
        return copy.deepcopy(kept[key])

    loading.ConfigLoaderImpl._compose_config_from_defaults_list = compose


def _read_from(repo: Any) -> tuple[Any, ...] | None:
    """Return all sources and the version of each file of conf/; None where another folder is a source, too."""
    ours = app.conf_dir()
    sources = tuple((source.scheme(), source.path) for source in repo.get_sources())
    if [path for scheme, path in sources if scheme == "file"] != [str(ours)]:
        return None
    entries = (entry for folder, _, _ in os.walk(ours) for entry in os.scandir(folder))
    return sources, *((entry.path, *_version(entry.stat())) for entry in entries)


def _version(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns
