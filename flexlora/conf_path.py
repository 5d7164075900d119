"""Where the YAML files are: `flexlora/conf` in an installed wheel, the top-level `conf` in a checkout."""

from pathlib import Path


def conf_dir() -> Path:
    """The absolute folder of the configuration files.

    Raises:
        FileNotFoundError: neither place holds a `config.yaml`: the installation is broken.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no conf/config.yaml in {package} or beside it: reinstall flexlora")
