"""`flexlora-run`: train one run, or a sweep of runs with `-m`."""

import sys
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from flexlora.cli.command import FAILED, REFUSED, call_with_settings
from flexlora.results.folder import RunFolder
from flexlora.results.record import Ending
from flexlora.settings import RunSettings
from flexlora.training.dry_run import DryRun
from flexlora.training.progress import show_log


def main() -> None:
    """Run everything on the command line. The exit code is 0 if and only if every run is done.

    The exit code is 2 if every run that did not end well was refused because of a setting, a folder or a file. It is 1
    if a run failed or diverged. It is 130 or 143 if the command was interrupted by SIGINT or SIGTERM. With dry=true
    nothing runs, and the exit code is 0 or 2.
    """
    dry_run = DryRun()

    def run(settings: RunSettings, plain: dict[str, Any], overrides: list[str]) -> Ending:
        from flexlora.training.job import run_job, run_path

        show_log()
        if settings.dry:
            ending = dry_run.look(run_path(settings, overrides), plain)
            if HydraConfig.get().mode is RunMode.RUN:  # a sweep prints its own list
                print(": ".join(part for part in ending if part))
            return ending
        return run_job(settings, plain, overrides)

    endings = call_with_settings("flexlora-run", run, finished=_is_finished, skipped=_is_skipped, inputs=_check_inputs)
    bad = {ending.status for ending in endings} - {"done", "skipped"}
    if dry_run.asked:
        print(dry_run)
        sys.exit(REFUSED if "refused" in bad else 0)
    sys.exit(0 if not bad else REFUSED if bad == {"refused"} else FAILED)


def _check_inputs(settings: RunSettings) -> None:
    from flexlora.training.inputs import refuse_missing_inputs

    refuse_missing_inputs(settings)


def _is_finished(settings: RunSettings, plain: dict[str, Any], overrides: list[str]) -> bool:
    from flexlora.training.job import run_path

    return RunFolder(run_path(settings, overrides), plain).is_finished()


def _is_skipped(settings: RunSettings, plain: dict[str, Any], overrides: list[str]) -> bool:
    from flexlora.training.job import run_path, skips

    show_log()
    return skips(run_path(settings, overrides), plain)


if __name__ == "__main__":  # for `accelerate launch -m flexlora.cli.run`
    main()
