"""Fetch a packed VTAB-1K, unpack it, and check that it is the benchmark.

    python scripts/prepare_vtab.py DIR                              # from the hub
    python scripts/prepare_vtab.py DIR --archive vtab-1k.zip        # downloaded in another way: zip, tar, tar.gz
    python scripts/prepare_vtab.py DIR --check                      # only check an existing folder

DIR is then task.data_dir. If the command is stopped or killed, run it again: it continues. For each task it checks the
four lists, their numbers of rows and classes, and that every listed image exists. The first run decodes the images. The
exit code is 0 if all is right, 1 if the data differ from the benchmark, 2 if there is nothing to check.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path, PurePosixPath

from hydra import compose, initialize_config_dir

from flexlora.archives import Archive, Member, unpack
from flexlora.conf_path import conf_dir
from flexlora.errors import UserError, did_you_mean, one_line
from flexlora.hub import NO_WRITING, trouble_with, what_failed
from flexlora.settings import VtabTask, register_schemas, resolve
from flexlora.tasks.image_lists import LISTS, SIZES, read_list, task_folder

TASKS = sorted(path.stem for path in (conf_dir() / "task" / "vtab").glob("*.yaml"))
COLUMNS = ("task", *(name.removesuffix(".txt") for name in LISTS), "classes")
# The number of missing images that a message names. It counts the others.
NAMED = 3


@dataclass
class Finding:
    """The rows, classes and problems of one task."""

    task: str
    rows: dict[str, int] = field(default_factory=dict)
    """The number of rows of each list, by the list's name."""
    classes: int = 0
    problems: list[str] = field(default_factory=list)

    def cells(self) -> list[str]:
        numbers = [self.rows.get(name, 0) for name in LISTS]
        return [self.task, *(f"{number:,}" if number else "–" for number in [*numbers, self.classes])]


def settings_of(tasks: Sequence[str], folder: Path) -> list[VtabTask]:
    """Return the settings of each task, with `folder` as `task.data_dir`."""
    return [replace(_settings_of(name), data_dir=str(folder)) for name in tasks]


@cache
def _settings_of(name: str) -> VtabTask:
    """Return the settings of a task from `conf/`."""
    register_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        settings = resolve(compose("config", overrides=[f"task=vtab/{name}", "method=linear"]))[0].task
    assert isinstance(settings, VtabTask)
    return settings


def fetch(repository: str, file: str, revision: str | None) -> Path:
    """Download an archive into the hub's cache. A complete file is not downloaded again, a partial one is continued.

    Raises:
        UserError: the hub cannot be reached, does not have the file, or the cache cannot be written.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    trouble = trouble_with(repository, "dataset", revision)
    hint = "--archive FILE takes an archive that was downloaded in another way"
    try:
        return Path(
            hf_hub_download(
                repository, file, repo_type="dataset", revision=revision, local_files_only=trouble is not None
            )
        )
    except RemoteEntryNotFoundError as error:
        raise UserError(f"{repository} has no file {file} (--file NAME, --revision REV); {hint}") from error
    except Exception as error:  # the hub library, the cache and the network raise many kinds
        if isinstance(error, OSError) and error.errno in NO_WRITING:
            raise UserError(
                f"cannot write in the hub's cache: {error.strerror} (HF_HOME=DIR chooses another folder); {hint}"
            ) from error
        if trouble is not None:
            raise UserError(f"{repository} is not in the local cache and {trouble}; {hint}") from error
        raise UserError(f"cannot fetch {file} of {repository}: {what_failed(error)}; {hint}") from error


def targets(archive: Archive, tasks: Sequence[VtabTask]) -> dict[PurePosixPath, Member]:
    """Return the members of the archive that are in these tasks' folders. The keys are relative to the parent folder.

    Raises:
        UserError: no list of any task is in the archive, or the tasks are in several folders.
    """
    folders = {folder for settings in tasks for folder in settings.folders}
    lists = [m.name for m in archive.members if m.name.name in LISTS and m.name.parent.name in folders]
    roots = sorted({name.parent.parent for name in lists})
    if not roots:
        raise UserError(f"{archive.path} has no <task>/train800val200.txt of {', '.join(sorted(folders))}")
    if len(roots) > 1:
        raise UserError(f"{archive.path} has tasks in several folders: {', '.join(map(str, roots))}")
    inside = [member for member in archive.members if member.name.is_relative_to(roots[0])]
    places = {member.name.relative_to(roots[0]): member for member in inside}
    return {place: member for place, member in places.items() if place.parts and place.parts[0] in folders}


def check(settings: VtabTask) -> Finding:
    """Count the rows and classes of a task, and list everything that differs from the benchmark."""
    finding = Finding(settings.name.removeprefix("vtab/"))
    problems = finding.problems
    try:
        folder = task_folder(settings)
    except UserError:
        folder = None
    if folder is None or folder.name not in settings.folders:  # DIR is the folder of another task
        problems.append("is missing")
        return finding
    expected = {**SIZES, "test.txt": settings.test_rows}
    missing: dict[str, None] = {}  # an image is in two lists
    for name in LISTS:
        try:
            rows = read_list(folder / name, settings.num_classes)
        except UserError as error:
            problems.append(str(error).removeprefix("task.data_dir: ").replace(f"{folder}/", ""))
            continue
        finding.rows[name] = len(rows)
        finding.classes = max(finding.classes, 1 + max(rows.labels))
        if len(rows) != expected[name]:
            problems.append(f"{name} has {len(rows):,} rows, the benchmark's {expected[name]:,}")
        missing |= {name: None for name, image in zip(rows.names, rows.images, strict=True) if not _is_file(image)}
    if len(finding.rows) == len(LISTS) and finding.classes != settings.num_classes:
        problems.append(f"{finding.classes} classes, the benchmark has {settings.num_classes}")
    if missing:
        named = ", ".join(list(missing)[:NAMED]) + (", …" if len(missing) > NAMED else "")
        problems.append(f"{len(missing):,} {'image is' if len(missing) == 1 else 'images are'} missing: {named}")
    return finding


def _is_file(image: object) -> bool:
    """Return whether the image exists and is not empty. A full disk leaves empty files."""
    assert isinstance(image, Path)
    try:
        return image.is_file() and image.stat().st_size > 0
    except OSError:
        return False


def table(findings: Sequence[Finding]) -> str:
    """Return one line for each task: rows, classes and problems."""
    lines = [COLUMNS, *(finding.cells() for finding in findings)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    ends = ["", *("; ".join(finding.problems) or "ok" for finding in findings)]
    text = []
    for (task, *numbers), end in zip(lines, ends, strict=True):
        cells = [task.ljust(widths[0]), *(n.rjust(w) for n, w in zip(numbers, widths[1:], strict=True)), end]
        text.append("  ".join(cells).rstrip())
    return "\n".join(text)


def prepare(options: argparse.Namespace) -> list[Finding]:
    """Download, unpack and check the tasks."""
    folder = expanded(options.folder)
    if options.check and not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    tasks = settings_of(options.tasks, folder)
    if not options.check:
        fetched = fetch(options.repo, options.file, options.revision) if options.archive is None else options.archive
        with Archive(expanded(fetched)) as archive:
            places = targets(archive, tasks)
            written = unpack(archive, places, folder, anew=LISTS)
        print(f"{archive.path}: {len(places):,} files, {written:,} of them written to {folder}\n")
    return [check(settings) for settings in tasks]


def expanded(path: Path) -> Path:
    """Replace `~` by the home folder.

    Raises:
        UserError: the path names a user without a home folder.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {one_line(error)}") from error


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder for the tasks: task.data_dir")
    parser.add_argument("--repo", default="XiN0919/VTAB-1k", help="the hub's data set; default: %(default)s")
    parser.add_argument("--file", default="vtab-1k.zip", help="the archive in it; default: %(default)s")
    parser.add_argument("--revision", metavar="REV", help="revision of the data set; default: the newest")
    parser.add_argument("--archive", type=Path, metavar="FILE", help="a local archive, instead of the hub's")
    parser.add_argument("--tasks", default=",".join(TASKS), help="comma-separated; default: all 19")
    parser.add_argument("--check", action="store_true", help="check only: download and unpack nothing")
    options = parser.parse_args()
    options.tasks = options.tasks.split(",")
    for name in options.tasks:
        if name not in TASKS:
            parser.error(f"--tasks: there is no task '{name}'.{did_you_mean(name, TASKS)}")
    try:
        findings = prepare(options)
    except UserError as error:
        print(f"prepare_vtab.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("prepare_vtab.py: stopped; the same command continues", file=sys.stderr)
        return 130
    print(table(findings))
    wrong = sum(bool(finding.problems) for finding in findings)
    print(f"\n{wrong} of {len(findings)} tasks are not the benchmark's" if wrong else "\nall is there")
    return 1 if wrong else 0
