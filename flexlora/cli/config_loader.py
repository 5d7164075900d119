"""Compose settings with Hydra, without the work that Hydra repeats.

For each composition, Hydra reads every YAML file again and copies its whole ConfigStore. It composes each run of a
sweep twice. Here a process reads a file once and composes each choice of groups (task, method, model, ...) once. The
config of a run is a copy of that with the run's `key=value` overrides applied. Hydra itself also applies them last.
"""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import hydra._internal.hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from flexlora.cli.own_yaml import check_own_yaml
from flexlora.conf_path import conf_dir
from flexlora.errors import UserError, one_line
from flexlora.settings import register_schemas

T = TypeVar("T")


def install() -> None:
    """Make Hydra compose with `CachedLoader`, in its commands and in `hydra.compose`."""
    hydra._internal.hydra.ConfigLoaderImpl = CachedLoader  # type: ignore[misc]


class CachedLoader(ConfigLoaderImpl):
    """Hydra's loader with a cache. It copies files and choices of groups that it has composed before."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        self.config_search_path = config_search_path
        self.repository = _Repository(config_search_path)
        self._parsed: dict[str, Override] = {}
        self._composed: dict[Any, Callable[[], DictConfig]] = {}

    def __reduce__(self) -> Any:
        """Pickle the loader without its caches: launchers send it to every process that runs a job."""
        return _loader_of, (self.config_search_path,)

    def get_group_options(
        self,
        group_name: str,
        results_filter: ObjectType | None = ObjectType.CONFIG,
        config_name: str | None = None,
        overrides: list[str] | None = None,
    ) -> list[str]:
        """Return the configs or groups in a group. Without overrides this needs no composition.

        Only the completion of a shell names the config. It gets the configs of groups in the group too: `glue/cola`.
        """
        if config_name is not None and results_filter is ObjectType.CONFIG:
            return [name for name in self._all_configs(group_name) if name != "none"]
        if overrides:
            return super().get_group_options(group_name, results_filter, config_name, overrides)
        return self.repository.get_group_options(group_name, results_filter)

    def _all_configs(self, group: str) -> list[str]:
        below = self.repository.get_group_options(group, ObjectType.GROUP)
        inner = [f"{name}/{config}" for name in below for config in self._all_configs(f"{group}/{name}")]
        return [*self.repository.get_group_options(group, ObjectType.CONFIG), *inner]

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[Override], CachingConfigRepository]:
        parsed = self._parse(overrides)
        repository = CachingConfigRepository(self.repository)
        self._process_config_searchpath(config_name, parsed, repository)
        return parsed, repository

    def _load_configuration_impl(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        parsed = self._parse(overrides)
        if validate_sweep_overrides:
            self.validate_sweep_overrides_legal(parsed, run_mode, from_shell)
        choices, values = list(overrides), list[Override]()
        # The folders of hydra.searchpath may have groups that are not known here.
        if not any(override.key_or_group == "hydra.searchpath" for override in parsed):
            values = [override for override in parsed if self._sets_a_value(override)]
            choices = [line for line in overrides if not self._sets_a_value(self._parsed[line])]
        config = self._compose(config_name, choices, run_mode)
        self._apply_overrides_to_config(values, config)
        of_tasks = [override for override in parsed if not override.is_hydra_override()]
        config.hydra.overrides.task = [override.input_line for override in of_tasks]
        separators = config.hydra.job.config.override_dirname
        config.hydra.job.override_dirname = get_overrides_dirname(
            of_tasks, separators.exclude_keys, separators.item_sep, separators.kv_sep
        )
        return config

    def _compose(self, config_name: str | None, choices: list[str], run_mode: RunMode) -> DictConfig:
        # The mode decides only what becomes of a choice that has no file. A single run composes in both modes.
        if not any(override.is_sweep_override() for override in self._parse(choices)):
            run_mode = RunMode.RUN
        key = (config_name, tuple(choices), run_mode)
        if key not in self._composed:
            composed = super()._load_configuration_impl(config_name, choices, run_mode, validate_sweep_overrides=False)
            self._composed[key] = _copies_of(composed)
        return self._composed[key]()

    def _sets_a_value(self, override: Override) -> bool:
        """Return whether the override is `key=value`, which Hydra applies after it has composed the groups."""
        if override.is_hydra_override() or override.is_sweep_override():
            return False
        return isinstance(override.value(), dict) or not self.repository.group_exists(override.key_or_group)

    def _parse(self, overrides: list[str]) -> list[Override]:
        parser = OverridesParser.create()
        for line in overrides:
            if line not in self._parsed:
                (self._parsed[line],) = parser.parse_overrides([line])
        return [self._parsed[line] for line in overrides]


def _loader_of(config_search_path: ConfigSearchPath) -> CachedLoader:
    """Return the loader in a process that a launcher has started. It registers sources and schemas there first."""
    Plugins.instance()
    register_schemas()
    return CachedLoader(config_search_path)


class _Repository(ConfigRepository):
    """Hydra's repository of configs. It reads each config once."""

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        super().initialize_sources(config_search_path)
        self._read: dict[str, Callable[[], ConfigResult | None]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Repository":
        """Return a shallow copy. Hydra copies the repository for each composition and never changes its parts."""
        return copy.copy(self)

    def load_config(self, config_path: str) -> ConfigResult | None:
        if config_path not in self._read:
            file = self._own_file(config_path)
            if file is not None:
                check_own_yaml(file)
            try:
                self._read[config_path] = _copies_of(super().load_config(config_path))
            except ValueError as error:  # about the file's defaults list, or its line '# @package'
                if file is None or isinstance(error, OmegaConfBaseException):
                    raise
                raise UserError(f"{file}: {one_line(error)}") from error
        return self._read[config_path]()

    def _own_file(self, config_path: str) -> Path | None:
        """Return the file that Hydra would read, or None if it is not in a folder of the user."""
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None or source.scheme() != "file":
            return None
        file = Path(source.path) / (config_path if config_path.endswith(".yaml") else f"{config_path}.yaml")
        return None if file.is_relative_to(conf_dir()) else file


def _copies_of(original: T) -> Callable[[], T]:
    """Return a function that makes independent copies. pickle needs a fifth of the time of `copy.deepcopy`."""
    try:
        pickled = pickle.dumps(original)
    except pickle.PicklingError:  # a schema that was made at run time
        return lambda: copy.deepcopy(original)
    return lambda: pickle.loads(pickled)
