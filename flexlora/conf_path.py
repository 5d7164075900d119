"""The folder of the YAML files: `flexlora/conf` in an installed wheel, the top-level `conf` in a checkout."""

from pathlib import Path


def conf_dir() -> Path:
    """Return the absolute path of the folder of the YAML files.

    Raises:
        FileNotFoundError: neither folder has a `config.yaml`, because the installation is broken.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(f"there is no conf/config.yaml in {package} or {package.parent}: install flexlora again")
