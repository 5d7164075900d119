"""Generated programs: what passes, what fails, and what a program that tries to break out reaches.

Each test starts the isolated process (about 0.1 s): the isolation is made of system calls, and nothing can replace it.
"""

import os
import re
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from marks import slow_but

from flexlora.errors import UserError
from flexlora.tasks import code_execution
from flexlora.tasks.code_execution import Isolation, Limits, run_program, run_programs
from flexlora.tasks.humaneval import read_problems


def available() -> list[Isolation]:
    """Every isolation that this machine allows; the tests skip if there is none."""
    kinds = []
    for kind in Isolation:
        try:
            if code_execution._run("assert True", 10, Limits(), kind).passed:
                kinds.append(kind)
        except code_execution._CannotIsolate:
            continue
    return kinds


AVAILABLE = available()
pytestmark = pytest.mark.skipif(not AVAILABLE, reason="this machine cannot isolate a generated program")


@pytest.fixture(params=AVAILABLE, ids=lambda kind: kind.name)
def run(request, monkeypatch):
    """`run_program` under every isolation that this machine allows."""
    monkeypatch.setattr(code_execution, "isolation", lambda: request.param)
    return run_program


def attempt(*statements: str, before: str = "") -> str:
    """A program that passes if each of the statements raises OSError."""
    tries = "\n".join(
        f"try:\n    {statement}\nexcept OSError:\n    pass\nelse:\n    raise AssertionError({statement!r})"
        for statement in statements
    )
    return f"import ctypes, os, resource, signal, socket, subprocess, sys, threading\n{before}\n{tries}"


# (program, pattern of the reason)
NOT_PASSED = {
    "wrong answer": ("def f(): return 1\nassert f() == 2", "^AssertionError"),
    "error text": ("raise ValueError('a\\nb\\x1b[31m')", r"^ValueError: a\\nb\\x1b\[31m$"),
    "syntax": ("def f(:", "^SyntaxError: invalid syntax"),
    "null byte": ("x = 1\0", "null byte"),
    "sys.exit": ("import sys\nsys.exit(0)\nassert False", "^SystemExit: 0$"),
    "os._exit": ("import os\nos._exit(0)\nassert False", "^left with status 0 before its last line$"),
    "exit in a destructor": ("class A:\n    def __del__(self): import os; os._exit(0)\nA()\nassert False", "status 0"),
    "own signal": ("import os, signal\nsignal.raise_signal(signal.SIGKILL)\nassert False", "."),
    "segfault": ("import ctypes\nctypes.string_at(0)", "^ended by SIGSEGV"),
    "deep recursion": ("def f(): return f()\nf()", "^RecursionError"),
    "input": ("input()", "^EOFError"),
    "endless loop": ("while True: pass", "^timed out after 1 s$"),
    "endless loop in C": ("sum(iter(int, 1))", "^timed out"),
    "ignored signals": (
        "import signal\nfor s in (2, 15, 14, 24): signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
        "^timed out",
    ),
    "endless error text": (
        "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E",
        "^timed out",
    ),
    "memory": ("x = bytearray(4 * 2**30)", "^MemoryError"),
    "memory in small parts": ("x = []\nwhile True: x.append(bytearray(2**20))", "^MemoryError"),
    "a marker on standard output": ("print('passed', 'started', flush=True)\nimport os\nos._exit(0)", "status 0"),
    "bytes for every descriptor": (
        "import os\nfor n in range(64):\n    try: os.write(n, b'passed')\n    except OSError: pass\nos._exit(0)",
        "^passed$",
    ),
    "a flood for every descriptor": (
        "import os\nwhile True:\n    for n in range(64):\n        try: os.write(n, b'x' * 65536)\n"
        "        except OSError: pass",
        "^x+$",
    ),
    "all descriptors closed": ("import os, time\nos.closerange(0, 64)\nwhile True: time.sleep(1)", "^timed out"),
}


@pytest.mark.parametrize("name", NOT_PASSED)
def test_a_program_that_does_not_reach_its_end_does_not_pass(run, name):
    program, reason = NOT_PASSED[name]
    outcome = run(program, timeout=1 if "timed out" in reason else 20, limits=Limits(memory_mib=256))
    assert not outcome.passed
    assert re.search(reason, outcome.reason), outcome.reason
    assert len(outcome.reason) <= 200
    assert outcome.reason.isprintable()


# Programs that pass because every attempt to reach something outside fails.
HELD = {
    "network": attempt(
        "socket.socket()",
        "socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)",
        "socket.socket(socket.AF_UNIX)",
        "socket.create_connection(('127.0.0.1', 22))",
        "socket.getaddrinfo('example.org', 80)",
    ),
    "processes": attempt(
        "os.fork()",
        "os.posix_spawn(sys.executable, [sys.executable], {})",
        "os.execv(sys.executable, [sys.executable])",
        "subprocess.run(['true'])",
        "os.forkpty()",
    )
    + "\nassert os.system('true') != 0",
    "signals": attempt(
        "os.kill(PARENT, 0)", "os.kill(PARENT, 9)", "os.kill(os.getppid(), 9)", "os.kill(-1, 9)", "os.killpg(0, 9)"
    ),
    "files of the parent": attempt(
        "open(SECRET)",
        "os.listdir(FOLDER)",
        "open(SECRET, 'a')",
        "os.unlink(SECRET)",
        "os.chmod(SECRET, 0o777)",
        "os.truncate(SECRET, 0)",
        "open('/etc/passwd')",
        "open('/..' + SECRET)",
        "open('../../../../../../..' + SECRET)",
    ),
    "/proc": attempt(
        "open(f'/proc/{PARENT}/environ')",
        "open('/proc/self/environ')",
        "os.listdir(f'/proc/{PARENT}/fd')",
        "open(f'/proc/{PARENT}/mem', 'r+b')",
        "open(f'/proc/{os.getppid()}/environ')",
    ),
    "devices": attempt("open('/dev/mem')", "open('/dev/tty')", "open('/dev/shm/x', 'w')", "os.listdir('/sys')"),
    "more rights": attempt(
        "os.setuid(0)",
        "resource.prlimit(PARENT, resource.RLIMIT_CPU, (1, 1))",
        "os.chroot('.')",
        "os.setpriority(os.PRIO_PROCESS, PARENT, 19)",
        "os.mknod('device', 0o20600, 0x0101)",
        "os.memfd_create('memory')",
        "os.setsid()",
        "os.sched_setaffinity(PARENT, {0})",
    ),
    "higher limits": (
        "import resource\n"
        "for name in ('AS', 'CPU', 'FSIZE', 'NOFILE', 'NPROC'):\n"
        "    kind = getattr(resource, 'RLIMIT_' + name)\n"
        "    soft, hard = resource.getrlimit(kind)\n"
        "    try:\n"
        "        resource.setrlimit(kind, (hard + 1, hard + 1))\n"
        "    except (ValueError, OSError):\n"
        "        continue\n"
        "    raise AssertionError(name)"
    ),
    "system calls by number": (
        "import ctypes\n"
        "call = ctypes.CDLL(None, use_errno=True).syscall\n"
        "page = ctypes.create_string_buffer(4096)\n"
        "assert call(234, PARENT, PARENT, 0) == -1  # tgkill\n"
        # unshare, setns, mount, ptrace, process_vm_readv, keyctl, bpf, io_uring_setup, shmget, userfaultfd, kill, chown
        "for number in (272, 308, 165, 101, 310, 250, 321, 425, 29, 323, 62, 92):\n"
        "    assert call(number, 0x10000000, page, 4096, 0) == -1, number\n"
        "    assert ctypes.get_errno() in (1, 38), number"
    ),
    "environment": "import os\nassert set(os.environ) <= {'PYTHONHASHSEED', 'LC_CTYPE'}, os.environ",
    "descriptors": (
        "import os, stat\n"
        "for n in range(64):\n"
        "    try:\n"
        "        kind = os.fstat(n).st_mode\n"
        "    except OSError:\n"
        "        continue\n"
        "    assert stat.S_ISCHR(kind) or stat.S_ISFIFO(kind), n"
    ),
}


@pytest.mark.parametrize("name", HELD)
def test_a_program_reaches_nothing_outside(run, name, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "of the parent")
    secret = tmp_path / "secret.txt"
    secret.write_text("of the parent")
    secret.chmod(0o666)
    tmp_path.chmod(0o777)
    known = f"PARENT, SECRET, FOLDER = {os.getpid()}, {str(secret)!r}, {str(tmp_path)!r}"
    program = f"{known}\n{HELD[name]}"
    assert run(program, timeout=5).reason == "passed"
    assert secret.read_text() == "of the parent"


def test_a_fork_bomb_ends_at_its_first_fork(run):
    assert "PermissionError" in run("import os\nwhile True: os.fork()", timeout=2).reason


def test_threads_are_few_and_end_with_the_program(run):
    bomb = (
        "import threading, time\n"
        "threading.stack_size(65536)\n"
        "started = 0\n"
        "try:\n"
        "    while True:\n"
        "        threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "        started += 1\n"
        "except RuntimeError:\n"
        "    raise ValueError(started)"
    )
    reason = run(bomb, timeout=5).reason
    assert int(reason.removeprefix("ValueError: ")) < 32
    hanging = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()"
    began = time.monotonic()
    outcome = run(hanging, timeout=5)
    assert time.monotonic() - began < 4
    allowed = code_execution.isolation() is Isolation.namespaces
    assert outcome.passed is allowed, outcome.reason


def test_a_disk_cannot_be_filled(run):
    """The files of a program are in memory, in 16 MiB, and end with it; under Landlock there are none."""
    fill = (
        "written = 0\n"
        "try:\n"
        "    for n in range(100):\n"
        "        with open(f'file{n}', 'wb') as file:\n"
        "            for _ in range(100):\n"
        "                written += file.write(bytes(2**20))\n"
        "except OSError as error:\n"
        "    first = error\n"
        "assert written <= 16 * 2**20\n"
        "try:\n"
        "    for n in range(100000): open(f'/tmp/empty{n}', 'w').close()\n"
        "except OSError:\n"
        "    pass\n"
        "else:\n"
        "    raise AssertionError('no limit on files')\n"
    )
    assert run(fill, timeout=10).reason == "passed"


def test_a_small_file_can_be_written_where_there_are_namespaces(monkeypatch):
    if Isolation.namespaces not in AVAILABLE:
        pytest.skip("this machine allows no namespaces")
    program = (
        "import tempfile\nwith open('a', 'w') as f: f.write('b')\nassert open('a').read() == 'b'\ntempfile.mkdtemp()"
    )
    assert run_program(program).reason == "passed"


def test_no_file_and_no_process_is_left(run, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run("while True: pass", timeout=0.5)
    run("assert True")
    assert list(tmp_path.iterdir()) == []
    assert not [pid for pid in descendants(os.getpid()) if b"code_sandbox" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_ordinary_programs_pass(run):
    """What solutions need: other modules, classes whose module is looked up, files of the library, asyncio, numbers."""
    program = (
        "import asyncio, collections, dataclasses, datetime, decimal, hashlib, heapq, itertools, json, math, pickle\n"
        "import random, re, statistics, string, time, typing, unicodedata, zlib\n"
        "@dataclasses.dataclass\n"
        "class A:\n"
        "    x: 'typing.ClassVar[int]' = 1\n"
        "assert pickle.loads(pickle.dumps(A())) == A()\n"
        "async def f(): return 1\n"
        "assert asyncio.run(f()) == 1\n"
        "assert hashlib.md5(b'a').hexdigest()[:4] == '0cc1'\n"
        "print('x' * 10**6, 'é')\n"
        "time.sleep(0.01)\n"
        "if __name__ == '__main__': raise AssertionError('is a module')\n"
    )
    assert run(program).reason == "passed"


def test_the_same_program_has_the_same_order_of_sets():
    programs = ["raise ValueError(list({'a', 'b', 'c', 'd', 'e', 'f'}))"] * 3
    assert len({outcome.reason for outcome in run_programs(programs)}) == 1


def test_half_a_surrogate_pair_and_an_endless_text_do_not_pass(run):
    assert run("x = '\ud800'").reason == "the program contains half of a surrogate pair"
    assert "more than" in run("#" * 2**21).reason


def test_results_are_in_the_order_of_the_programs():
    outcomes = run_programs([f"import time\ntime.sleep({(3 - n) / 20})\nassert {n} != 2" for n in range(4)], workers=4)
    assert [outcome.passed for outcome in outcomes] == [True, True, False, True]


def test_a_machine_without_isolation_refuses(monkeypatch):
    def cannot(*arguments):
        raise code_execution._CannotIsolate("no")

    monkeypatch.setattr(code_execution, "_run", cannot)
    with pytest.raises(UserError, match=r"cannot be isolated here.*namespaces: no; landlock: no"):
        code_execution.isolation.__wrapped__()


def test_an_isolation_that_leaks_is_not_used(monkeypatch):
    """The probe program itself finds out: a filter that lets a program fork makes it fail."""
    original = code_execution.PROBE
    monkeypatch.setattr(code_execution, "PROBE", original.replace("os.fork", "os.getpid"))
    with pytest.raises(UserError, match="the isolation is not complete"):
        code_execution.isolation.__wrapped__()


def test_a_killed_parent_leaves_no_program(run):
    """A forked process, because it is killed: its program must end with it."""
    parent = os.fork()
    if parent == 0:
        run("while True: pass", timeout=60)
        os._exit(0)
    try:
        started = until(lambda: [pid for pid in descendants(parent) if code_runs(pid)])
    finally:
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
    assert started
    assert until(lambda: not any(alive(pid) for pid in started))


def test_a_running_program_has_no_rights_and_sees_few_mounts(run):
    """Looked at from outside: what a program cannot ask itself."""
    with ThreadPoolExecutor(1) as pool:
        outcome = pool.submit(run, "import time\ntime.sleep(3)", timeout=20)
        pid = until(lambda: next((pid for pid in descendants(os.getpid()) if code_runs(pid)), None))
        status = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        mounts = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
        assert outcome.result().passed
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    if code_execution.isolation() is Isolation.namespaces:
        assert "0" not in status["Uid"].split()
        assert {mount[4] for mount in mounts if mount[5].startswith("rw")} == {"/", "/dev/null"}
        assert {mount[4].split("/")[1] for mount in mounts} <= {"", "dev", "etc", "lib", "lib64", "usr", *prefixes()}


def prefixes() -> set[str]:
    """The top folder of this Python."""
    return {Path(sys.base_prefix).parts[1]}


def until(condition):
    """What `condition` returns as soon as it is true, or after 30 seconds."""
    deadline = time.monotonic() + 30
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return value


def code_runs(pid: int) -> bool:
    """Whether a process is inside the filter of system calls: its program runs."""
    return "Seccomp:\t2" in Path(f"/proc/{pid}/status").read_text()


def descendants(pid: int) -> list[int]:
    """The processes below `pid`."""
    found = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):  # each thread lists its own
        for child in listed.read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("step", slow_but([16], [16, 1]))
def test_canonical_solutions_of_humaneval_pass_and_broken_ones_fail(shared, step):
    """Every 16th problem in the fast suite, all 164 in the slow one."""
    path = shared / "data" / "humaneval" / "HumanEval.jsonl.gz"
    if not path.is_file():
        pytest.skip("no HumanEval in the shared data")
    problems = read_problems(path)
    assert len(problems) == 164
    problems = problems[::step]
    right = run_programs([p.program(p.output) for p in problems], timeout=20)
    assert [p.entry_point for p, outcome in zip(problems, right, strict=True) if not outcome.passed] == []
    wrong = run_programs([p.program("    return object()\n") for p in problems], timeout=20)
    assert [p.entry_point for p, outcome in zip(problems, wrong, strict=True) if outcome.passed] == []
