"""`flexlora-run`: one run, or a sweep of them with `-m`."""

import sys
from typing import Any

from flexlora.cli.command import FAILED, REFUSED, call_with_settings
from flexlora.results.record import Ending
from flexlora.settings import RunSettings
from flexlora.training.progress import show_log


def main() -> None:
    """Run what the command line says; the exit code is 0 if and only if every run is done.

    2 where every run that did not end well was refused for a setting, a folder or a file, 1 where one failed or
    diverged, 130 or 143 where it was interrupted by SIGINT or SIGTERM.
    """
    endings = call_with_settings("flexlora-run", _run)
    bad = {ending.status for ending in endings} - {"done", "skipped"}
    sys.exit(0 if not bad else REFUSED if bad == {"refused"} else FAILED)


def _run(settings: RunSettings, plain: dict[str, Any], overrides: list[str]) -> Ending:
    from flexlora.training.job import run_job

    show_log()
    return run_job(settings, plain, overrides)


if __name__ == "__main__":  # for `accelerate launch -m flexlora.cli.run`
    main()
