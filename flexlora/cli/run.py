"""`flexlora-run`: one run, or a sweep of them with `-m`."""

import logging
import os
import signal
import sys
from collections import Counter

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from flexlora.cli.explain import explain, require_task
from flexlora.conf_path import conf_dir
from flexlora.errors import UserError
from flexlora.settings import register_schemas, resolve
from flexlora.training.progress import is_main_process, show_log
from flexlora.training.stop import raise_interrupted

REFUSED, FAILED = 2, 1


def main() -> None:
    """Run what the command line says; the exit code is 0 if and only if every run is done.

    2 where every run that did not end well was refused for a setting, a folder or a file, 1 where one failed or
    diverged, 130 or 143 where it was interrupted by SIGINT or SIGTERM.
    """
    register_schemas()
    logging.getLogger("flexlora").setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, raise_interrupted)
    show_tracebacks = bool(os.environ.get("HYDRA_FULL_ERROR"))
    # Hydra then hands its errors on instead of printing them its own way and leaving.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    endings: list[str] = []

    def job(config: DictConfig) -> None:
        try:
            endings.append(_run(config))
        except UserError as error:
            if show_tracebacks:
                raise
            _say(error)
            endings.append("refused")

    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(job)()
    except (HydraException, OmegaConfBaseException) as error:
        if show_tracebacks:
            raise
        _say(explain(error))
        sys.exit(REFUSED)
    except KeyboardInterrupt as error:
        _say("interrupted")
        sys.exit(128 + getattr(error, "number", signal.SIGINT))
    if len(endings) > 1 and is_main_process():
        counts = ", ".join(f"{count} {ending}" for ending, count in Counter(endings).items())
        print(f"{len(endings)} runs: {counts}")
    bad = set(endings) - {"done", "skipped"}
    sys.exit(0 if not bad else REFUSED if bad == {"refused"} else FAILED)


def _run(config: DictConfig) -> str:
    require_task(config)
    settings, plain = resolve(config)
    overrides = list(HydraConfig.get().overrides.task)
    # Everything heavy is imported from here on: a bad setting is answered before.
    from flexlora.training.job import run_job

    # PEFT imports bitsandbytes where it is installed, which then warns of kernels for bases that are not quantised.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    show_log()
    return run_job(settings, plain, overrides)


def _say(what: object) -> None:
    if is_main_process():
        print(f"flexlora-run: {what}", file=sys.stderr)


if __name__ == "__main__":  # for `accelerate launch -m flexlora.cli.run`
    main()
