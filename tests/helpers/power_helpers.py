"""Records what a command writes and syncs, and makes the folders that a power cut at any moment could leave.

`record_disk` is a fault for `run_command`. Before every operation on a file, and after every sync, it notes the tree
and what of each file and each folder is surely on the disk. Of what is not synced the worst is assumed, in two ways:

- content lost: the names are on the disk, but of each file only the synced part. The rest is NUL.
- names lost: of each folder only the names at its last sync.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


class _Recorder:
    """Files and folders are known by a number, because a new one may get the inode of one that was deleted."""

    def __init__(self, root: Path, log: Path) -> None:
        self.root, self.log = root, log
        self.numbers: dict[int, int] = {}
        self.contents: dict[int, str] = {}
        self.names: dict[int, dict[str, int]] = {}
        self.count = 0
        self.states = (log / "states.jsonl").open("w")
        self.busy = False

    def number(self, inode: int) -> int:
        if inode not in self.numbers:
            self.count += 1
            self.numbers[inode] = self.count
        return self.numbers[inode]

    def note(self, what: str) -> None:
        """Write down the tree as it is and what of it is synced."""
        if not self.root.is_dir():
            return
        tree: dict[int, dict[str, int]] = {}
        sizes: dict[int, int] = {}
        seen = set()

        def walk(folder: str, inode: int) -> int:
            number = self.number(inode)
            seen.add(inode)
            entries = tree[number] = {}
            for entry in os.scandir(folder):
                found = entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    entries[entry.name] = walk(entry.path, found.st_ino)
                else:
                    seen.add(found.st_ino)
                    entries[entry.name] = self.number(found.st_ino)
                    sizes[entries[entry.name]] = found.st_size
            return number

        top = walk(str(self.root), self.root.stat().st_ino)
        for inode in set(self.numbers) - seen:
            del self.numbers[inode]
        state = {"what": what, "top": top, "tree": tree, "sizes": sizes, "contents": self.contents, "names": self.names}
        self.states.write(json.dumps(state) + "\n")
        self.states.flush()

    def synced(self, handle: int) -> None:
        found = os.fstat(handle)
        path = _path_of(handle)
        if path.is_dir():
            names = {entry.name: self.number(entry.stat(follow_symlinks=False).st_ino) for entry in os.scandir(path)}
            self.names[self.number(found.st_ino)] = names
        else:
            content = path.read_bytes()
            name = hashlib.sha256(content).hexdigest()
            (self.log / name).write_bytes(content)
            self.contents[self.number(found.st_ino)] = name
        self.note(f"synced {path}")


def _path_of(handle: int) -> Path:
    return Path(f"/proc/self/fd/{handle}").readlink()


def record_disk(root: Path, log: Path) -> None:
    """Note every operation on files under `root` into the folder `log`."""
    recorder = _Recorder(root, log)
    fsync = os.fsync

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        if recorder.busy or event not in EVENTS or isinstance(arguments[0], int):
            return
        path = os.fsdecode(arguments[0])
        inside = path.startswith(f"{root}{os.sep}") or (event in {"os.remove", "os.rmdir"} and arguments[-1] != -1)
        if not inside or (event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            return
        recorder.busy = True
        recorder.note(f"before {event} {path}")
        recorder.busy = False

    def synced(handle: int) -> None:
        fsync(handle)
        if _path_of(handle).is_relative_to(root):
            recorder.busy = True
            recorder.synced(handle)
            recorder.busy = False

    os.fsync = synced
    sys.addaudithook(on_event)


def states(log: Path, to: Path) -> Iterator[tuple[str, str, Path]]:
    """Yield every different folder that a power cut could leave: what happened last, what was lost, and the folder."""
    made: set[str] = set()
    for line in (log / "states.jsonl").read_text().splitlines():
        state = json.loads(line)
        for lost in ("content", "names"):
            entries = state["tree"] if lost == "content" else state["names"]
            files = dict(_files(state, entries, str(state["top"]), ""))
            digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
            if digest in made:
                continue
            made.add(digest)
            folder = to / digest[:16]
            folder.mkdir()
            for name, (content, size) in files.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if content is None:
                    path.mkdir(exist_ok=True)
                    continue
                kept = (log / content).read_bytes() if content else b""
                path.write_bytes((kept + b"\0" * size)[: max(size, len(kept))] if lost == "content" else kept)
            yield state["what"], lost, folder


def _files(state: dict[str, Any], entries: dict[str, Any], top: str, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield the files by their path under `top`: what of it is synced, and its size. A folder has no content."""
    for name, number in sorted(entries.get(top, {}).items()):
        key = str(number)
        if key in entries or key in state["tree"] or key in state["names"]:
            yield f"{prefix}{name}", (None, 0)
            yield from _files(state, entries, key, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", (state["contents"].get(key, ""), state["sizes"].get(key, 0))
