"""Composes settings in this process, with the loader of the commands."""

from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from flexlora.cli.config_loader import install
from flexlora.conf_path import conf_dir
from flexlora.settings import RunSettings, register_schemas, resolve


def composed(*overrides: str, with_hydra: bool = False) -> Any:
    """The composed config of these overrides, with the settings of Hydra itself if asked for.

    One loader serves the whole process, so each YAML file is read once and each choice of groups is composed once.
    """
    hydra = _hydra()  # first: initialising Hydra replaces its global instance
    state = GlobalHydra.instance()
    before, state.hydra = state.hydra, hydra
    try:
        return compose("config", overrides=list(overrides), return_hydra_config=with_hydra)
    finally:
        state.hydra = before


def settings_of_run(*overrides: str) -> RunSettings:
    """The resolved settings of a run with these overrides."""
    return resolve(composed(*overrides))[0]


@cache
def _hydra() -> Any:
    register_schemas()
    install()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return GlobalHydra.instance().hydra
