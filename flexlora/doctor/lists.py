"""The lists of `flexlora-doctor tasks`, `experiments` and `settings`, read from the YAML files and their comments."""

import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from flexlora.errors import UserError
from flexlora.settings.comments import commented_settings, head_comment

WIDTH = 100
GROUPS = {"benchmark": "", "task": "task.", "method": "method.", "model": "model.", "scale": ""}
"""The groups whose files have settings, with the prefix of their keys. An experiment only sets some of these."""
NAMED = 4
"""The number of files that a line names."""
SENTENCE = re.compile(r"(?<=[.?!])\s+(?=[A-Z0-9]|flexlora)")


def tasks(folders: Sequence[Path], word: str) -> str:
    """Return a line for each task: its name and the first sentence of the comment in its file."""
    return _named("task", folders, word, sentences=1)


def experiments(folders: Sequence[Path], word: str) -> str:
    """Return a paragraph for each experiment: its name and the comment in its file."""
    return _named("experiment", folders, word, sentences=None)


def settings(folders: Sequence[Path], word: str) -> str:
    """Return every setting with its value, its meaning and the files that have it.

    Raises:
        UserError: no setting has `word` in its name or meaning.
    """
    places: dict[tuple[str, str], list[str]] = {}
    values: dict[tuple[str, str], set[str]] = {}
    for where, key, value, meaning in _every_setting(folders):
        if _has(word, f"{key} {meaning}"):
            places.setdefault((key, meaning), []).append(where)
            values.setdefault((key, meaning), set()).add(value)
    if not places:
        raise UserError(f"no setting has '{word}' in its name or meaning; flexlora-doctor settings lists all")
    lines = []
    for key, meaning in places:
        files, found = places[key, meaning], values[key, meaning]
        more = f" and {len(files) - NAMED} more" if len(files) > NAMED else ""
        value = next(iter(found)) if len(found) == 1 else "…"
        lines += textwrap.wrap(f"{key}={value}", WIDTH, subsequent_indent="  ", break_on_hyphens=False)
        lines += textwrap.wrap(meaning, WIDTH, initial_indent="    ", subsequent_indent="    ")
        lines.append(f"    in {', '.join(files[:NAMED])}{more}")
    return "\n".join(lines)


LISTS: Mapping[str, Callable[[Sequence[Path], str], str]] = {
    "tasks": tasks,
    "experiments": experiments,
    "settings": settings,
}


def _named(group: str, folders: Sequence[Path], word: str, sentences: int | None) -> str:
    rows = {}
    for name, file in _files(group, folders):
        meaning = " ".join(SENTENCE.split(head_comment(file))[:sentences])
        if name != "none" and _has(word, f"{name} {meaning}"):
            rows[name] = meaning
    if not rows:
        raise UserError(f"no {group} has '{word}' in its name or description; flexlora-doctor {group}s lists all")
    column = max(map(len, rows)) + 2
    return "\n".join(
        textwrap.fill(meaning, WIDTH, initial_indent=name.ljust(column), subsequent_indent=" " * column)
        for name, meaning in sorted(rows.items())
    )


def _every_setting(folders: Sequence[Path]) -> Iterator[tuple[str, str, str, str]]:
    """Yield the place, the key, the value and the meaning of every setting of every file."""
    files = [("conf/config.yaml", "", folder / "config.yaml") for folder in folders]
    for group, prefix in GROUPS.items():
        files += [(f"{group}={name}", prefix, file) for name, file in _files(group, folders)]
    for where, prefix, file in files:
        if file.is_file():
            for item in commented_settings(file):
                yield where, f"{prefix}{item.key}", item.value, item.meaning


def _files(group: str, folders: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    for folder in folders:
        for file in sorted((folder / group).rglob("*.yaml")):
            yield file.relative_to(folder / group).with_suffix("").as_posix(), file


def _has(word: str, text: str) -> bool:
    return word.lower() in text.lower()
