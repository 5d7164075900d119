"""Run a generated program in an isolated process, and find out whether it reaches its end.

docs/explanation/running-generated-code.md says what the isolation protects from and what it does not.
"""

import math
import os
import platform
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path

from flexlora.errors import UserError, printable
from flexlora.tasks.code_sandbox import SIGNAL_BASE

SANDBOX = Path(__file__).with_name("code_sandbox.py")
TIMEOUT = 3.0
"""Seconds that a program may take, as in HumanEval's own script."""
# Seconds for starting Python and the isolation, on a busy machine too. They do not count as the program's time.
START_SECONDS = 60.0
LONGEST_ANSWER = 4096
LONGEST_REASON = 200
LONGEST_PROGRAM = 2**20
MEBIBYTE = 2**20


class Isolation(Enum):
    """The ways to isolate a program. The value is what the log says about it."""

    namespaces = (
        "generated programs run in namespaces of their own (users, files, network, processes, IPC), with a filter of "
        "system calls and resource limits"
    )
    landlock = (
        "generated programs run under Landlock (they read only Python's library, and write nothing), with a filter of "
        "system calls (no network, processes or threads) and resource limits; namespaces are not allowed here"
    )


@dataclass(frozen=True)
class Limits:
    """The resources of one program, besides its time."""

    memory_mib: int = 1024
    """Address space."""
    file_mib: int = 8
    """The size of one file. All files together have 16 MiB, in memory."""
    open_files: int = 64
    threads: int = 32

    def of_system(self, timeout: float) -> dict[str, int]:
        """Return the limits by the names of `resource`."""
        return {
            "AS": self.memory_mib * MEBIBYTE,
            "STACK": 8 * MEBIBYTE,
            "FSIZE": self.file_mib * MEBIBYTE,
            "NOFILE": self.open_files,
            "NPROC": self.threads,
            "CPU": math.ceil(timeout) + 1,
            "CORE": 0,
            "MEMLOCK": 0,
            "MSGQUEUE": 0,
        }


@dataclass(frozen=True)
class Outcome:
    """Whether a program passed, and the reason in one line if it did not."""

    passed: bool
    reason: str


class _CannotIsolate(Exception):
    """The isolated process did not start. The text says why."""


# It tries to reach what the isolation must keep away: the file {outside}, the network, another process.
PROBE = """
import os, socket
for forbidden in (lambda: open({outside!r}), socket.socket, os.fork, lambda: os.kill({parent}, 0)):
    try:
        forbidden()
    except OSError:
        continue
    raise AssertionError("the isolation is not complete")
"""


@cache
def isolation() -> Isolation:
    """Return the strongest isolation that this machine allows. A probe program finds out whether it works.

    Raises:
        UserError: this machine allows no isolation that keeps files, network and processes away from a program.
    """
    reasons = []
    for kind in Isolation:
        try:
            with tempfile.NamedTemporaryFile(prefix="flexlora-probe-") as outside:
                probe = PROBE.format(outside=outside.name, parent=os.getpid())
                outcome = _run(probe, 10.0, Limits(), kind)
        except _CannotIsolate as error:
            reasons.append(f"{kind.name}: {error}")
            continue
        if outcome.passed:
            return kind
        reasons.append(f"{kind.name}: {outcome.reason}")
    raise UserError(
        "generated programs cannot be isolated here, so they are not run: they need Linux on x86_64 or aarch64, and "
        f"either user namespaces (Linux 5.12) or Landlock (Linux 5.13). Tried: {'; '.join(reasons)}"
    )


def run_program(program: str, timeout: float = TIMEOUT, limits: Limits | None = None) -> Outcome:
    """Run a Python program in an isolated process of its own, which ends with the program.

    The program passes if its last line has run, without an exception, within `timeout` seconds. A program that leaves
    earlier does not pass, with whatever exit status. The program has only the standard library, and no input; its
    output is thrown away.

    Args:
        program: the source text, with its own checks, such as `assert` statements.
        timeout: seconds of wall-clock time, without the start of the process.
        limits: the other resources.

    Raises:
        UserError: this machine cannot isolate a program.
    """
    try:
        return _run(program, timeout, limits or Limits(), isolation())
    except _CannotIsolate as error:
        raise UserError(f"cannot start an isolated process for a generated program: {error}") from error


def run_programs(programs: Iterable[str], timeout: float = TIMEOUT, workers: int | None = None) -> list[Outcome]:
    """Run many programs, `workers` at a time (None: as many as this process has CPU cores), in their order.

    Raises:
        UserError: this machine cannot isolate a program.
    """
    isolation()
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(lambda program: run_program(program, timeout), programs))


def _run(program: str, timeout: float, limits: Limits, kind: Isolation) -> Outcome:
    if platform.system() != "Linux":
        raise _CannotIsolate(f"this is {platform.system()}")
    started, passed = secrets.token_hex(16), secrets.token_hex(16)
    try:
        source = program.encode().decode()
    except UnicodeEncodeError:
        return Outcome(False, "the program contains half of a surrogate pair")
    if len(source) > LONGEST_PROGRAM:
        return Outcome(False, f"the program has more than {LONGEST_PROGRAM} characters")
    with tempfile.TemporaryDirectory(prefix="flexlora-program-") as folder:
        limited = " ".join(f"{name}={value}" for name, value in limits.of_system(timeout).items())
        request = "\0".join((kind.name, folder, started, passed, limited, source))
        with _process(request, folder) as process:
            answer, ended = _answer(process, started.encode(), passed.encode(), timeout)
        code = process.returncode
    if not answer.startswith(started.encode()):
        raise _CannotIsolate(_shown(answer) or (f"status {code}" if ended else f"no start within {START_SECONDS:g} s"))
    rest = answer[len(started) :]
    if rest == passed.encode():
        return Outcome(True, "passed")
    if not ended:
        return Outcome(False, f"timed out after {timeout:g} s")
    return Outcome(False, _shown(rest) or _how_it_ended(code))


@contextmanager
def _process(request: str, folder: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Start the sandbox in `folder` without this process's environment and files; kill all of it afterwards."""
    with tempfile.TemporaryFile() as file:
        file.write(request.encode())
        file.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-s", "-S", "-P", "-B", str(SANDBOX)],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PYTHONHASHSEED": "0"},  # the same program has the same result in every run
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _answer(process: "subprocess.Popen[bytes]", started: bytes, passed: bytes, timeout: float) -> tuple[bytes, bool]:
    """Read what the sandbox answers, and whether it ended by itself in time. The time counts from `started` on."""
    assert process.stdout is not None
    pipe, answer = process.stdout.fileno(), b""
    exited = os.pidfd_open(process.pid)
    try:
        deadline = time.monotonic() + START_SECONDS
        while answer != started + passed and len(answer) < LONGEST_ANSWER:
            if not _ready(pipe, deadline):
                return answer, False
            part = os.read(pipe, LONGEST_ANSWER)
            if not part:
                return answer, _ready(exited, deadline)
            if len(answer) < len(started) <= len(answer + part):
                deadline = time.monotonic() + timeout
            answer += part
        return answer, True
    finally:
        os.close(exited)


def _ready(descriptor: int, deadline: float) -> bool:
    """Wait until `descriptor` can be read or is closed; false if that is not so before `deadline`."""
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    return bool(waiting.poll(max(0.0, deadline - time.monotonic()) * 1000))


def _shown(answer: bytes) -> str:
    return printable(answer.decode(errors="replace").strip().removesuffix(":"))[:LONGEST_REASON]


def _how_it_ended(code: int) -> str:
    number = -code if code < 0 else code - SIGNAL_BASE
    if number in {member.value for member in signal.Signals}:
        return f"ended by {signal.Signals(number).name} before its last line"
    return f"left with status {code} before its last line"
