"""Run an installed command in a process that is forked after all imports. This saves seconds for each command."""

import importlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest.mock import patch

RunCommand = Callable[..., subprocess.CompletedProcess[str]]

COMMAND = Path(sys.executable).with_name("flexlora-run")
# Variables that a command reads when it starts. A library may read others while it is imported.
READ_LATE = {"COLUMNS", "FLEXLORA_CACHE", "HOME", "HYDRA_FULL_ERROR", "PYTHONPATH"}


def run_command(
    command: Path,
    *arguments: str,
    timeout: float = 240,
    fresh: bool = False,
    fault: Callable[[], None] | None = None,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Run an installed command in its own process, offline. An empty variable is removed from its environment.

    The process is forked from the `server`, because imports take most of a short run's time. With `fresh`, or with a
    variable that a library may read during its import, the file in `bin/` is started instead. A `fault` is a function
    that the process calls before the command (see tests/helpers/fault_helpers.py).
    """
    environment = _environment(variables)
    words = [str(command), *arguments]
    if fresh or set(variables) - READ_LATE:
        assert fault is None, "a fault needs a forked process"
        return subprocess.run(words, capture_output=True, text=True, timeout=timeout, env=environment, check=False)
    with tempfile.NamedTemporaryFile() as stdout, tempfile.NamedTemporaryFile() as stderr:
        process = start_command(words, Path(stdout.name), Path(stderr.name), fault, **variables)
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(words, timeout)
        output, errors = (Path(file.name).read_text(encoding="utf-8") for file in (stdout, stderr))
        assert process.exitcode is not None
        return subprocess.CompletedProcess(words, process.exitcode, output, errors)


def start_command(
    words: list[str], stdout: Path, stderr: Path, fault: Callable[[], None] | None = None, **variables: str
) -> BaseProcess:
    """Start the command `words` in a forked process that writes to two files, and return the running process."""
    process = server().Process(target=be, args=(words, _environment(variables), str(stdout), str(stderr), fault))
    process.start()
    return process


def _environment(variables: dict[str, str]) -> dict[str, str]:
    """Return the environment of a command. An empty variable is removed from it."""
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **variables}
    return {key: value for key, value in environment.items() if value}


def server() -> ForkServerContext:
    """Return the server that forks processes. What `flexlora.testing.warm` does is already done in them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["flexlora.testing.warm"])
    # The imported libraries read these variables. Without the last one, the resource tracker would warn about tqdm's
    # semaphores after a kill.
    quiet = {"PYTHONWARNINGS": "ignore:resource_tracker"}
    with patch.dict(os.environ, {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **quiet}):
        forkserver.ensure_running()
    return context


def be(
    words: list[str],
    environment: dict[str, str],
    stdout: str,
    stderr: str,
    fault: Callable[[], None] | None = None,
) -> None:
    """Run the command `words` in this forked process, after a call of `fault` if it is given."""
    for number, name in ((1, stdout), (2, stderr)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT, 0o644), number)
    os.environ.clear()
    os.environ |= environment
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.argv = words
    if fault is not None:
        fault()
    sys.exit(importlib.import_module(f"flexlora.cli.{Path(words[0]).stem.removeprefix('flexlora-')}").main())
