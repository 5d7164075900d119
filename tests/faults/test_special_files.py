"""Pipes, sockets, devices, links in a circle and YAML alias bombs: no reader waits for them or fills the memory."""

import ast
import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fuzz_helpers import bounded
from glue_helpers import settings_of
from report_helpers import report, write_run, write_training

from flexlora.archives import Archive
from flexlora.baselines.noah import _read_subnet
from flexlora.cli.own_yaml import check_own_yaml
from flexlora.cli.sweep import Journal
from flexlora.errors import UserError
from flexlora.paths import saved_folder
from flexlora.reading import NotRead, read_bytes, read_lines, read_text, read_yaml_text, special_files
from flexlora.report.allocation import read_allocation
from flexlora.report.compare_runs import compare
from flexlora.report.published import read_published
from flexlora.report.table_file import read_table
from flexlora.results.collect import Run, collect
from flexlora.results.files import JsonLines, file_sha256, read_json_lines
from flexlora.results.folder import RunFolder
from flexlora.results.predictions import read_answers
from flexlora.results.record import read_record
from flexlora.settings.recipes import read
from flexlora.tasks.commonsense_rows import read_rows
from flexlora.tasks.glue_columns import read_files
from flexlora.tasks.glue_tsv import read_tsv
from flexlora.tasks.image_lists import ImageRows, read_list
from flexlora.tasks.images import _mapped
from flexlora.tasks.tokens import _read as read_tokens
from flexlora.tiny.model_cache import is_whole
from flexlora.training.checkpoint import MANIFEST, STATE, TENSORS, Checkpoints

PACKAGE = Path(__file__).resolve().parents[2] / "flexlora"
KINDS = ("a pipe", "a socket", "an endless device", "a link to itself", "a folder")


def put(kind: str, path: Path) -> Path:
    """Put a file of this kind at `path`, in place of what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        before = Path.cwd()
        os.chdir(path.parent)  # the path of a socket has at most 107 bytes
        try:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(path.name)
        finally:
            os.chdir(before)
    elif kind == "an endless device":
        path.symlink_to("/dev/zero")
    elif kind == "a link to itself":
        path.symlink_to(path.name)
    else:
        path.mkdir()
    return path


def _run(folder: Path) -> Run:
    write_training(write_run(folder, rank_events={"count": 5}))
    (run,) = collect(folder).runs
    return run


def _of_allocation(name: str) -> Callable[[str, Path], object]:
    def read_it(kind: str, folder: Path) -> object:
        run = _run(folder)
        put(kind, run.path / name)
        return read_allocation(run)

    return read_it


def _compared(name: str) -> Callable[[str, Path], object]:
    def read_it(kind: str, folder: Path) -> object:
        first, second = _run(folder / "a"), _run(folder / "b")
        put(kind, second.path / name)
        return compare(first, second)

    return read_it


def _checkpoint(name: str) -> Callable[[str, Path], object]:
    def read_it(kind: str, folder: Path) -> object:
        step = folder / "checkpoints" / "step-000000001"
        step.mkdir(parents=True)
        content = b"x"
        hashes = {}
        for file in (TENSORS, STATE):
            (step / file).write_bytes(content)
            hashes[file] = file_sha256(step / file)
        (step / MANIFEST).write_text(json.dumps({"step": 1, "sha256": hashes}))
        put(kind, step / name)
        found = Checkpoints(folder).load()
        assert found is None
        return found

    return read_it


def _at(name: str, function: Callable[[Path], object]) -> Callable[[str, Path], object]:
    """A reader of the file `name`."""
    return lambda kind, folder: function(put(kind, folder / name))


def _within(name: str, function: Callable[[Path], object]) -> Callable[[str, Path], object]:
    """A reader of a folder that has the file `name`."""

    def read_it(kind: str, folder: Path) -> object:
        put(kind, folder / name)
        return function(folder)

    return read_it


def _resumed(folder: Path) -> bool:
    (folder / "checkpoints" / "step-000000001").mkdir(parents=True)
    return RunFolder(folder, {}).can_resume()


def _entered(folder: Path) -> None:
    with RunFolder(folder, {}):
        pass


READERS: dict[str, Callable[[str, Path], object]] = {
    "bytes": _at("x", lambda path: read_bytes(path, 10)),
    "bytes of data": _at("x", read_bytes),
    "lines": _at("x", lambda path: list(read_lines(path))),
    "a record": _at("result.json", read_record),
    "runs below a folder: a record": _within("a/result.json", collect),
    "runs below a folder: a configuration": _within("a/config.yaml", collect),
    "a finished run": _within("result.json", lambda folder: RunFolder(folder, {}).is_finished()),
    "an unfinished run": _within("config.yaml", _resumed),
    "who holds a run: the lock": _within(".lock", lambda folder: RunFolder(folder, {}).holder()),
    "who holds a run: the holder": _within(".holder.json", lambda f: RunFolder(f, {})._describe_holder()),
    "a run's folder: the lock": _within(".lock", _entered),
    "a run's folder: the log": _within("log.txt", _entered),
    "lines of JSON": _at("metrics.jsonl", lambda path: list(read_json_lines(path))),
    "lines of JSON, continued": _at("metrics.jsonl", lambda path: JsonLines(path, {"bytes": 9, "sha256": "x"})),
    "predictions": _at("predictions-last.parquet", read_answers),
    "a checksum": _at("x", file_sha256),
    "an allocation: events": _of_allocation("ranks.jsonl"),
    "an allocation: weights": _of_allocation("adapter/adapter_model.safetensors"),
    "a comparison: metrics": _compared("metrics.jsonl"),
    "a comparison: events": _compared("ranks.jsonl"),
    "a comparison: predictions": _compared("predictions-last.parquet"),
    "a comparison: weights": _compared("adapter/adapter_model.safetensors"),
    "a checkpoint: its manifest": _checkpoint(MANIFEST),
    "a checkpoint: its tensors": _checkpoint(TENSORS),
    "a checkpoint: its state": _checkpoint(STATE),
    "a table": _at("mine.yaml", read_table),
    "printed numbers": _at("mine.csv", lambda path: read_published(str(path))),
    "recipes": _at("mine.yaml", read),
    "a YAML of the user's": _at("mine.yaml", check_own_yaml),
    "cached tokens": _at("x.safetensors", read_tokens),
    "cached images": _at("x.uint8", lambda path: _mapped(path, (1, 3, 2, 2), warn=True)),
    "a cached model": _within("checksums.json", is_whole),
    "a cached model: weights": _within("model.safetensors", is_whole),
    "a list of images": _at("test.txt", lambda path: read_list(path, 2)),
    "an image": _at("x.jpg", lambda path: ImageRows([path.name], [path], [0]).read(0)),
    "rows of JSON": _at("test.json", read_rows),
    "rows of TSV": _at("train.tsv", lambda path: read_tsv(path, settings_of("cola"))),
    "rows of a column file": _at("train.csv", lambda path: read_files([path], settings_of("cola"))),
    "an archive": _at("x.zip", Archive),
    "a subnet": _at("subnet.json", _read_subnet),
    "a sweep's journal": _at("x.json", lambda path: _journal(path).read(("x",))),
    "a folder for a library": _within("model.safetensors", lambda folder: saved_folder("model.path", str(folder))),
}


def _journal(path: Path) -> Journal:
    journal = Journal(path.parent)
    path.replace(journal._file(("x",)))
    return journal


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", READERS)
def test_no_reader_waits(reader: str, kind: str, tmp_path: Path) -> None:
    """It says that it cannot read the file, or does without it; `bounded` ends one that waits after a minute."""
    with bounded(), contextlib.suppress(UserError, OSError, ValueError):
        READERS[reader](kind, tmp_path)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_the_report_names_what_it_cannot_read(kind: str, tmp_path: Path) -> None:
    write_training(write_run(tmp_path, rank_events={"count": 5}))
    put(kind, tmp_path / "other" / "result.json")
    put(kind, tmp_path / "third" / "config.yaml")
    with bounded():
        result = report(tmp_path)
    word = {"a pipe": "a named pipe", "an endless device": "a device"}.get(kind, kind)
    expected = f"{tmp_path / 'other' / 'result.json'} is not the record of a run: it is {word}, not a regular file"
    assert (result.returncode, result.stderr) == (1, f"flexlora-report: {expected}\n")
    assert "lora" in result.stdout
    (run,) = collect(tmp_path).runs
    put(kind, run.path / "ranks.jsonl")
    with bounded():
        result = report("claims", run.path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.endswith(f"ranks.jsonl cannot be read: it is {word}, not a regular file\n")


def test_a_file_beyond_its_limit_is_not_read(tmp_path: Path) -> None:
    """A sparse file of a tebibyte takes no room on the disk."""
    with (tmp_path / "result.json").open("wb") as file:
        file.truncate(2**40)
    with bounded():
        with pytest.raises(ValueError, match="is not the record of a run: it is larger than 256 MiB"):
            read_record(tmp_path / "result.json")
        with pytest.raises(NotRead, match="it has a line longer than 64 MiB"):
            list(read_json_lines(tmp_path / "result.json"))
        with pytest.raises(ValueError, match="holds no predictions: it is larger than 1024 MiB"):
            read_answers(tmp_path / "result.json")
    (tmp_path / "x").write_bytes(b"12345")
    assert read_bytes(tmp_path / "x", 5) == b"12345"
    with pytest.raises(NotRead):
        read_bytes(tmp_path / "x", 4)


def test_predictions_of_a_billion_equal_rows_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = 1000
    columns = {name: pyarrow.array(np.zeros(rows, np.int64)) for name in ("split", "label", "prediction")}
    parquet.write_table(pyarrow.table(columns, metadata={"step": "1"}), tmp_path / "x.parquet")
    read_answers(tmp_path / "x.parquet")
    monkeypatch.setattr("flexlora.results.predictions.MOST_ROWS", rows - 1)
    with pytest.raises(ValueError, match="holds no predictions: it has 1,000 rows"):
        read_answers(tmp_path / "x.parquet")


def _bomb(levels: int) -> str:
    """A YAML of so many lines that stands for 9 ** `levels` values."""
    lines = ["a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join([*lines, "name: x\n"])


BOMBS = {
    "aliases": (_bomb(9), "its aliases stand for more than 100,000 values"),
    "keys": (_bomb(9).replace("[1, 2, 3, 4, 5, 6, 7, 8, 9]", "{a: 1}").replace("[*", "{<<: [*").replace("]\n", "]}\n"),
             "its aliases stand for more than 100,000 values"),
    "a circle": ("a: &a [*a]\n", "one of its aliases stands for a value that contains the alias"),
    "levels": ("a: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
    "levels with an alias": ("b: &b 1\nc: *b\na: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
    "digits": (f"a: {'9' * 5000}\n", "Exceeds the limit"),
    "size": (f"a: {'x' * 2**23}\n", "it is larger than 4 MiB"),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_yaml_that_stands_for_too_much_is_one_line(bomb: str, tmp_path: Path) -> None:
    """A table, a file of a `--config-dir`, and the configuration of an unfinished run."""
    text, message = BOMBS[bomb]
    for name in ("task/mine.yaml", "config.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with bounded():
        with pytest.raises(UserError, match=message):
            check_own_yaml(tmp_path / "task" / "mine.yaml")
        with pytest.raises(UserError, match=r"^\S+/config\.yaml"):
            read_table(tmp_path / "config.yaml")
        with pytest.raises(UserError, match=r"config\.yaml cannot be read \("):
            _resumed(tmp_path)
        assert collect(tmp_path).runs == []
        read(tmp_path / "config.yaml")


def test_aliases_within_bounds_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("base: &b {a: 1}\nother: {<<: *b, c: [*b, *b]}\n")
    assert "other" in read_yaml_text(tmp_path / "x.yaml")
    check_own_yaml(tmp_path / "x.yaml")


def test_a_pipe_that_replaces_the_file_before_it_is_opened_is_no_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("a pipe", tmp_path / "x")
    monkeypatch.setattr("flexlora.reading.regular", lambda path: path)
    with bounded(), pytest.raises(NotRead, match="it is a named pipe, not a regular file"):
        read_text(tmp_path / "x")


def test_special_files_of_a_folder(tmp_path: Path) -> None:
    for number, kind in enumerate(KINDS):
        put(kind, tmp_path / str(number))
    (tmp_path / "a file").write_text("")
    assert dict(special_files(tmp_path)) == {"0": "a named pipe", "1": "a socket", "2": "a device"}


# --- the kind ---------------------------------------------------------------------------------------------------------

OPENING = {"open", "read_text", "read_bytes", "load_file", "safe_open", "memmap", "fromfile", "deserialize", "ZipFile"}
OPENING_OF = {("OmegaConf", "load"), ("yaml", "load"), ("torch", "load"), ("np", "load"), ("parquet", "read_table")}
READING = {"regular", "open_regular", "read_bytes", "read_text", "read_lines", "read_yaml_text"}
# (file, function): why it opens a file itself.
ALLOWED = {
    ("archives.py", "ZipFile"): "open_regular has just read the first bytes of the same file",
    ("archives.py", "open"): "the same, for tar; and members of the archive",
    ("cli/command.py", "open"): "/dev/null, to write",
    ("cli/report.py", "open"): "/dev/null, to write",
    ("cli/sweep.py", "open"): "locks, to write: a pipe that is opened so does not wait",
    ("methods/residual.py", "load_file"): "the method has just written the file",
    ("reference/site.py", "read_text"): "pages of this project, when its site is built",
    ("report/page/__init__.py", "read_text"): "the package's own style and script",
    ("report/page/plotly_source.py", "read_bytes"): "a file of the installed plotly",
    ("results/environment.py", "read_text"): "/proc",
    ("results/predictions.py", "read_table"): "the bytes come from read_bytes",
    ("results/files.py", "open"): "files and folders that were just written, to sync them; its own parts, O_NONBLOCK",
    ("tasks/code_sandbox.py", "open"): "/dev/null and folders of its own, in a process that imports nothing of ours",
    ("tasks/images.py", "memmap"): "the open file comes from open_regular or is a temporary one",
    ("training/checkpoint.py", "load_file"): "`verify` has just read the same file",
    ("training/checkpoint.py", "load"): "`verify` has just read the same file",
    ("training/memory.py", "read_text"): "/proc and /sys",
    ("tuner/trainer.py", "read_bytes"): "`is_file` comes before; the tuner imports nothing of the runner",
}


def _opened() -> Iterator[tuple[str, str]]:
    for file in sorted(PACKAGE.rglob("*.py")):
        place = file.relative_to(PACKAGE).as_posix()
        if place == "reading.py" or place.startswith("testing/"):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (name := _opening(node)) and not _is_safe(node):
                yield place, name


def _opening(call: ast.Call) -> str | None:
    """The name of the called function if it opens a file to read."""
    function = call.func
    if isinstance(function, ast.Name):
        return function.id if function.id in OPENING - READING else None
    if not isinstance(function, ast.Attribute):
        return None
    owner = function.value.id if isinstance(function.value, ast.Name) else ""
    if function.attr not in OPENING and (owner, function.attr) not in OPENING_OF:
        return None
    modes = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return None if any(mode[:1] in {"w", "x", "a"} or "+" in mode for mode in modes) else function.attr


def _is_safe(call: ast.Call) -> bool:
    """Whether an argument is what `flexlora.reading` returned, or is in memory."""
    inner = [node for argument in call.args for node in ast.walk(argument) if isinstance(node, ast.Call)]
    names = (node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func) for node in inner)
    return any(name in READING or name == "io.BytesIO" for name in names)


def test_every_reader_goes_through_one_helper() -> None:
    """A new reader uses `flexlora.reading`, or says in `ALLOWED` why it need not."""
    found = set(_opened())
    assert found - ALLOWED.keys() == set()
    assert ALLOWED.keys() - found == set(), "an exception that is no longer needed"
