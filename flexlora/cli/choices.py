"""The choices of each config group, and the names of all settings, as the command line can use them."""

import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf

from flexlora.conf_path import conf_dir
from flexlora.settings import flat_keys

GROUPS = ("task", "method", "model", "scale", "experiment")


def config_folders() -> list[Path]:
    """Return the folders of YAML files of this run. A later folder has precedence."""
    sources = HydraConfig.get().runtime.config_sources
    return [Path(source.path) for source in reversed(sources) if source.schema == "file"]


def choices(group: str, folders: list[Path]) -> list[str]:
    """Return every choice of a config group in `folders`, as the command line writes it: `glue/cola`."""
    found = {
        str(file.relative_to(folder / group).with_suffix(""))
        for folder in folders
        for file in (folder / group).rglob("*.yaml")
    }
    return sorted(found)


def method_files() -> dict[str, Path]:
    """Return the YAML file of every method of the package and of `--config-dir`, by the method's name."""
    folders = given_folders()
    found = {name: folder / "method" / f"{name}.yaml" for folder in folders for name in choices("method", [folder])}
    return dict(sorted(found.items()))


def given_folders() -> list[Path]:
    """Return the package's folder of YAML files, and the folder of `--config-dir` if it is given."""
    folders = [conf_dir()]
    arguments = sys.argv[1:]
    for position, argument in enumerate(arguments):
        if argument.startswith("--config-dir="):
            folders.append(Path(argument.partition("=")[2]))
        elif argument in {"--config-dir", "-cd"} and position + 1 < len(arguments):
            folders.append(Path(arguments[position + 1]))
    return folders


def known_keys() -> list[str]:
    """Return the names of all settings of the choices on the command line, composed without its other overrides."""
    chosen = [item for item in sys.argv[1:] if item.partition("=")[0] in GROUPS and "," not in item]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
            try:
                composed = compose("config", overrides=chosen)
            except HydraException:  # a file of the user may be broken
                composed = compose("config")
    except HydraException:
        return list(GROUPS)
    plain = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(plain, dict)
    keys = [key for key in flat_keys(plain) if not key.startswith(("recipes", "method.recipes", "benchmark"))]
    # training.epochs comes before task.epochs, which is its default.
    return [*GROUPS, *sorted(keys, key=lambda key: not key.startswith("training."))]
