"""`flexlora-run`: one run, or a sweep of them with `-m`."""

import logging
import os
import signal
import sys
from types import FrameType

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from flexlora.cli.explain import explain, require_task
from flexlora.conf_path import conf_dir
from flexlora.errors import UserError
from flexlora.settings import register_schemas, resolve

REFUSED, FAILED, INTERRUPTED = 2, 1, 130


def main() -> None:
    """Run what the command line says; the exit code is 0 if and only if every run is done.

    2 where every run that did not end well was refused for a setting, a folder or a file, 1 where one failed or
    diverged, 130 where it was interrupted.
    """
    register_schemas()
    logging.getLogger("flexlora").setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, _interrupt)
    show_tracebacks = bool(os.environ.get("HYDRA_FULL_ERROR"))
    # Hydra then hands its errors on instead of printing them its own way and leaving.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    codes: list[int] = []

    def job(config: DictConfig) -> None:
        try:
            codes.append(_run(config))
        except UserError as error:
            if show_tracebacks:
                raise
            print(f"flexlora-run: {error}", file=sys.stderr)
            codes.append(REFUSED)

    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(job)()
    except (HydraException, OmegaConfBaseException) as error:
        if show_tracebacks:
            raise
        print(f"flexlora-run: {explain(error)}", file=sys.stderr)
        sys.exit(REFUSED)
    except KeyboardInterrupt:
        print("flexlora-run: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    bad = [code for code in codes if code]
    sys.exit(0 if not bad else FAILED if FAILED in bad else REFUSED)


def _run(config: DictConfig) -> int:
    require_task(config)
    settings, plain = resolve(config)
    overrides = list(HydraConfig.get().overrides.task)
    # Everything heavy is imported from here on: a bad setting is answered before.
    from flexlora.training.job import run_job
    from flexlora.training.progress import show_log

    show_log()
    return 0 if run_job(settings, plain, overrides) in {"done", "skipped"} else FAILED


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
