"""The process that runs one generated program. `code_execution.py` starts this file as a script.

It imports only the standard library, and it runs only on Linux. The order is: read the request, isolate this process,
write the token `started`, run the program, write the token `passed`. Nothing of the program runs before the isolation
is complete. docs/explanation/running-generated-code.md says what the isolation does and does not protect from.
"""
# This process starts for every program, and importing pathlib would make its start twice as long.
# ruff: noqa: PTH100, PTH101, PTH102, PTH103, PTH112, PTH114, PTH115, PTH116, PTH120, PTH123, PTH211

from __future__ import annotations

import ctypes
import os
import resource
import stat
import struct
import sys

TYPE_CHECKING = False  # typing takes as long to import as all other modules together
if TYPE_CHECKING:
    from typing import NoReturn

# Where the dynamic linker finds the libraries of Python's own modules.
SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
MESSAGE_LETTERS = 300
NOBODY = 65534
SIGKILL = 9
# A process that signal n ended makes the process that waits for it leave with this number plus n, as in a shell.
SIGNAL_BASE = 128

CLONE_THREAD = 0x10000
NEW_MOUNTS, NEW_UTS, NEW_IPC, NEW_USER, NEW_PIDS, NEW_NETWORK = 0x20000, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 2, 4, 1 << 12, 1 << 14, 1 << 18, 2
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
MOUNT_SETATTR, LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 442, 444, 445, 446

# machine: (its number in seccomp, the number of pivot_root)
MACHINES = {"x86_64": (0xC000003E, 155), "aarch64": (0xC00000B7, 41)}

# The system calls that a program may make, by their numbers on x86_64 and aarch64 (None: it does not exist there). All
# other calls fail with "Operation not permitted". There is no call to start a process or a program, to open a socket,
# to send a signal to another process, to mount, to trace, or to change a file's owner, mode or times.
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "pwrite64": (18, 68), "lseek": (8, 62), "close": (3, 57), "close_range": (436, 436), "open": (2, None),
    "openat": (257, 56), "stat": (4, None), "fstat": (5, 80), "lstat": (6, None), "newfstatat": (262, 79),
    "statx": (332, 291), "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, None),
    "readlinkat": (267, 78), "getcwd": (79, 17), "getdents64": (217, 61), "mkdir": (83, None), "mkdirat": (258, 34),
    "rmdir": (84, None), "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38),
    "renameat2": (316, 276), "ftruncate": (77, 46), "fsync": (74, 82), "fdatasync": (75, 83), "dup": (32, 23),
    "dup2": (33, None), "dup3": (292, 24), "fcntl": (72, 25), "flock": (73, 32), "pipe": (22, None), "pipe2": (293, 59),
    "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72), "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22), "eventfd2": (290, 19),
    "socketpair": (53, 199), "sendto": (44, 206), "recvfrom": (45, 207), "mmap": (9, 222), "munmap": (11, 215),
    "mprotect": (10, 226), "mremap": (25, 216), "madvise": (28, 233), "brk": (12, 214), "futex": (202, 98),
    "set_robust_list": (273, 99), "get_robust_list": (274, 100), "rseq": (334, 293), "sched_yield": (24, 124),
    "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153), "getrusage": (98, 165), "sysinfo": (99, 179),
    "uname": (63, 160), "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173), "getuid": (102, 174),
    "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "getgroups": (115, 158),
    "getrandom": (318, 278), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136), "sigaltstack": (131, 132), "exit": (60, 93), "exit_group": (231, 94),
    "setitimer": (38, 103), "getitimer": (36, 102), "alarm": (37, None), "set_tid_address": (218, 96),
    "getrlimit": (97, 163), "sched_getaffinity": (204, 123), "getcpu": (309, 168), "membarrier": (324, 283),
    "restart_syscall": (219, 128), "umask": (95, 166),
}  # fmt: skip
CLONE, CLONE3, TGKILL, PRLIMIT, IOCTL = (56, 220), (435, 435), (234, 131), (302, 261), (16, 29)
# Questions about a file descriptor: is it a terminal, close it on exec, do not block.
IOCTLS = (0x5401, 0x5451, 0x5421)

libc = ctypes.CDLL(None, use_errno=True)


def main() -> NoReturn:
    """Serve the one request on standard input, and write the answer to standard output."""
    kind, folder, started, passed, limits, program = sys.stdin.buffer.read().decode().split("\0", 5)
    answer = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    os.close(nothing)
    try:
        if kind == "namespaces":
            _enter_namespaces(folder)
            _become_first_process(answer)
            _leave_root()
        else:
            _restrict_files()
        _die_with_parent()
        _limit(limits)
        _filter_system_calls(threads=kind == "namespaces")
    except (OSError, ValueError) as error:
        os.write(answer, f"{type(error).__name__}: {error}".encode()[:MESSAGE_LETTERS])
        os._exit(1)
    os.write(answer, started.encode())
    _run(program, passed.encode(), answer)


def _run(program: str, passed: bytes, answer: int) -> NoReturn:
    """Run the program, then write `passed`, or the error that ended it. Leave without running anything else."""
    write, leave, base, kind, text = os.write, os._exit, BaseException, type, str
    # `dataclasses`, `pickle` and `typing` look up a class's module by its name.
    module = sys.modules["program"] = type(sys)("program")
    try:
        exec(compile(program, "program", "exec"), module.__dict__)
    except base as error:
        try:
            write(answer, f"{kind(error).__name__}: {text(error)}".encode(errors="replace")[:MESSAGE_LETTERS])
        finally:
            leave(1)
    write(answer, passed)
    leave(0)


def _enter_namespaces(folder: str) -> None:
    """Leave the machine's files, network, processes and users: only `folder` with a small root file system is left.

    An ordinary user needs a user namespace for it. Root does not, and a namespace would keep it the machine's root.
    """
    user, group = os.geteuid(), os.getegid()
    _check(libc.unshare(NEW_MOUNTS | NEW_UTS | NEW_IPC | NEW_PIDS | NEW_NETWORK | (NEW_USER if user else 0)), "unshare")
    if user:
        for name, content in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(content)
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, b"size=16m,nr_inodes=1000,mode=755")
    for path in _read_only():
        _bind(path, folder)
    _bind(os.devnull, folder)
    os.mkdir(f"{folder}/tmp")
    os.chmod(f"{folder}/tmp", 0o1777)
    os.chdir(folder)
    # The new root is stacked on the old one, which is then removed.
    _check(libc.syscall(MACHINES[os.uname().machine][1], b".", b"."), "pivot_root")
    _check(libc.umount2(b".", MNT_DETACH), "umount2")
    os.chdir("/tmp")


def _read_only() -> list[str]:
    """Return the folders that Python reads: its own library and the system's libraries. No path is inside another."""
    wanted = [path for path in sys.path if os.path.isdir(path)]
    wanted += [f"{sys.base_prefix}/lib", *SYSTEM_LIBRARIES]
    kept: list[str] = []
    for path in sorted({os.path.abspath(path) for path in wanted if os.path.lexists(path)}):
        if not any(path.startswith(f"{other}/") for other in kept):
            kept.append(path)
    return kept


def _bind(path: str, folder: str) -> None:
    """Show the machine's file or folder `path` in the new root `folder`, read-only. A symbolic link stays one."""
    target = folder + path
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        with open(target, "w"):
            pass
    _mount(path, target, None, MS_BIND | MS_REC)
    if stat.S_ISCHR(os.stat(path).st_mode):  # a device would be closed by MOUNT_ATTR_NODEV
        return
    read_only = ctypes.create_string_buffer(struct.pack("QQQQ", 0b111, 0, 0, 0))  # RDONLY | NOSUID | NODEV
    recursive = 0x8000
    _check(libc.syscall(MOUNT_SETATTR, -100, target.encode(), recursive, read_only, 32), f"mount_setattr {path}")


def _become_first_process(answer: int) -> None:
    """Continue in a new process, the first of its process namespace. This process waits for it and ends as it ends."""
    child = os.fork()
    if child == 0:
        return
    os.close(answer)
    _die_with_parent()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else SIGNAL_BASE - code)


def _leave_root() -> None:
    """Become a user without rights if this process is root: root has no limit on its number of threads."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def _restrict_files() -> None:
    """Allow only to read the files of Python's library, by Landlock."""
    version = libc.syscall(LANDLOCK_CREATE, None, 0, 1)
    _check(version, "landlock")
    handled = (1 << 13) - 1 | (version >= 2) << 13 | (version >= 3) << 14 | (version >= 5) << 15
    ruleset = libc.syscall(LANDLOCK_CREATE, ctypes.create_string_buffer(struct.pack("Q", handled)), 8, 0)
    _check(ruleset, "landlock_create_ruleset")
    read_file, read_folder = 1 << 2, 1 << 3
    for path in _read_only():
        parent = os.open(path, os.O_PATH)
        rights = read_file | read_folder if os.path.isdir(path) else read_file
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, parent))
        _check(libc.syscall(LANDLOCK_ADD, ruleset, 1, rule, 0), f"landlock_add_rule {path}")
        os.close(parent)
    _check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _check(libc.syscall(LANDLOCK_RESTRICT, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


def _die_with_parent() -> None:
    _check(libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")


def _limit(limits: str) -> None:
    """Give up all capabilities and set the limits (`AS=1 CPU=1`), which cannot be raised again."""
    header = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0))
    _check(libc.capset(header, ctypes.create_string_buffer(24)), "capset")
    for name, value in (limit.split("=") for limit in limits.split()):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (int(value), int(value)))


def _filter_system_calls(threads: bool) -> None:
    """Install the seccomp filter: `ALLOWED`, threads if they may be started, and signals and limits of this process."""
    machine = os.uname().machine
    if machine not in MACHINES:
        raise ValueError(f"the machine is a {machine}: the filter of system calls knows {' and '.join(MACHINES)}")
    place = list(MACHINES).index(machine)
    load, equal, any_bit, give = 0x20, 0x15, 0x45, 0x06
    allow, refuse, missing = 0x7FFF0000, 0x50000 | 1, 0x50000 | 38  # EPERM, ENOSYS
    number, architecture, arguments = 0, 4, 16
    steps: list[tuple[int, int, int, int]] = [
        (load, 0, 0, architecture),
        (equal, 1, 0, MACHINES[machine][0]),
        (give, 0, 0, refuse),
        (load, 0, 0, number),
    ]

    def rule(call: int, *then: tuple[int, int, int, int]) -> None:
        steps.extend([(equal, 0, len(then), call), *then])

    def argument_is(call: int, index: int, *values: int) -> None:
        checks = [step for value in values for step in ((equal, 0, 1, value), (give, 0, 0, allow))]
        rule(call, (load, 0, 0, arguments + 8 * index), *checks, (give, 0, 0, refuse))

    for numbers in ALLOWED.values():
        if numbers[place] is not None:
            rule(numbers[place], (give, 0, 0, allow))  # type: ignore[arg-type]
    rule(CLONE3[place], (give, 0, 0, missing))  # libraries then use clone, whose flags a filter can read
    if threads:
        is_thread = ((load, 0, 0, arguments), (any_bit, 0, 1, CLONE_THREAD), (give, 0, 0, allow), (give, 0, 0, refuse))
        rule(CLONE[place], *is_thread)
    argument_is(TGKILL[place], 0, os.getpid())
    argument_is(PRLIMIT[place], 0, 0)
    argument_is(IOCTL[place], 1, *IOCTLS)
    steps.append((give, 0, 0, refuse))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code)))
    _check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _check(libc.prctl(PR_SET_SECCOMP, 2, program, 0, 0), "seccomp")


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: bytes | None = None) -> None:
    names = [None if name is None else name.encode() for name in (source, target, kind)]
    _check(libc.mount(*names, ctypes.c_ulong(flags), data), f"mount {target}")


def _check(result: int, call: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


if __name__ == "__main__":
    main()
