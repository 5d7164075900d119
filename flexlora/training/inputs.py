"""The inputs of a run: missing folders are refused before torch is imported, and files get stamps for the record."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flexlora
from flexlora.errors import UserError
from flexlora.models import on_hub
from flexlora.models.saved_files import check_saved_model
from flexlora.paths import existing_folder, existing_path, saved_folder
from flexlora.results.record import recorded_run
from flexlora.results.stamps import Stamp, folder_stamp, stamps
from flexlora.settings import GlueTask, OwnTextTask, RunSettings, VtabTask
from flexlora.tasks.glue_files import find_train
from flexlora.tasks.image_lists import task_folder

MODEL_FILES = (".json", ".safetensors", ".txt", ".model", ".jinja")


def refuse_missing_inputs(settings: RunSettings) -> None:
    """Refuse a missing or damaged input now, because the task, the model or the method would refuse it seconds later.

    No data are read. This does not check folders that only code from outside this package reads, nor data that
    flexlora/tiny makes.

    Raises:
        UserError: a folder or the file of a training split is missing, or a file of the model is cut off.
    """
    task, model, method = settings.task, settings.model, settings.method
    if method.fields.get("ranks_from") is not None:
        recorded_run("method.ranks_from", method.fields["ranks_from"])
    if _has_module("tasks", task.family) and task.data_dir is not None:  # a family from outside may have no such field
        _refuse_missing_data(task)
    if model.path is not None and _has_module("models", model.kind) and not on_hub(model):
        check_saved_model(model.path)
    if settings.adapter is not None:
        saved_folder("adapter", settings.adapter)


def _refuse_missing_data(task: Any) -> None:
    if isinstance(task, OwnTextTask):
        existing_path("task.data_dir", task.data_dir or "")
        return
    root = existing_folder("task.data_dir", task.data_dir)
    try:
        if isinstance(task, GlueTask):
            find_train(task, root)
        elif isinstance(task, VtabTask):
            task_folder(task)
    except OSError as error:
        raise UserError(f"task.data_dir: cannot read {error.filename}: {error.strerror}") from error


def _has_module(folder: str, name: str) -> bool:
    """Return whether `flexlora/<folder>/<name>.py` exists. An import of the package would also import torch."""
    return (Path(flexlora.__file__).parent / folder / f"{name}.py").is_file()


Inputs = dict[str, dict[str, Stamp]]
"""The stamps of the files that a run read, by path, for each of `flexlora.results.record.INPUTS`."""


def stamp_inputs(
    settings: RunSettings, provenance: Mapping[str, Any], revision: str | None, images: Iterator[Path]
) -> Inputs:
    """Return the stamps of the files that a run has just read. Data from the hub has a revision instead.

    Args:
        settings: the settings of the run.
        provenance: the source of the data, as the task recorded it.
        revision: the commit of a model from the hub.
        images: the files of the task that are too many to have one stamp each.

    Raises:
        UserError: a file has changed since it was read.
    """
    groups = {
        "data": list(_data_files(provenance)),
        "model": list(_model_files(settings, revision)),
        "adapter": _readable(settings.adapter, MODEL_FILES),
        "ranks": _readable(settings.method.fields.get("ranks_from"), ("result.json",)),
    }
    try:
        inputs = {group: stamps(files) for group, files in groups.items() if files}
        folders = sorted({image.parent for image in images})
        if folders:
            inputs["images"] = {str(folder): folder_stamp(folder) for folder in folders}
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}: it was there when the run began") from error
    for path, found in inputs.get("data", {}).items():
        read = provenance["sha256"][str(Path(path).relative_to(provenance["path"]))]
        if found["sha256"] != read:
            raise UserError(f"task.data_dir: {path} was changed while it was read: give the same command again")
    return inputs


def contents(inputs: Inputs) -> dict[str, dict[str, str]]:
    """Return the SHA-256 of each file by its name: a checkpoint keeps it for all inputs except the data."""
    return {
        group: {Path(path).name: values["sha256"] for path, values in files.items()}
        for group, files in inputs.items()
        if group in ("model", "adapter")
    }


def refuse_other(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of a run with other settings, data or weights.

    Args:
        before: the identity in the checkpoint, by `config`, `data` and the names of `contents`.
        now: the identity of this run, in the same form.

    Raises:
        UserError: `before` and `now` differ; the message names the first file that differs.
    """
    for group in sorted({*before, *now}):
        old, new = before.get(group), now.get(group)
        if old == new:
            continue
        what = "the configuration" if group == "config" else f"the {group}"
        raise UserError(
            f"{what} is not what it was when the run was stopped{_where(old, new)}: begin a new one with variant=NAME"
        )


def _where(old: Any, new: Any) -> str:
    """Return ` (<file> differs)` for the first name whose hash differs; an empty text if no hash differs."""
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return ""
    for part in ("sha256", "content"):  # of data: files, or rows from the hub
        old, new = (side[part] if isinstance(side.get(part), Mapping) else side for side in (old, new))
    differ = sorted(str(name) for name in {*old, *new} if old.get(name) != new.get(name))
    return f" ({differ[0]} differs)" if differ else ""


def _data_files(provenance: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the files whose hashes a task recorded. Other hashes (generated rows, decoded images) name no files."""
    if provenance.get("source") == "folder":
        files = (Path(provenance["path"]) / name for name in provenance.get("sha256") or ())
        yield from (file for file in files if file.is_file())


def _model_files(settings: RunSettings, revision: str | None) -> list[Path]:
    model = settings.model
    if model.path is None:  # our own model: its revision is a hash of the code that made it
        return []
    folder = Path(model.path).expanduser()
    if on_hub(model):
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(model.path, "config.json", revision=revision or model.revision)
        if not isinstance(config, str):
            return []
        folder = Path(config).parent
    return _readable(folder, MODEL_FILES if model.use_safetensors else (*MODEL_FILES, ".bin"))


def _readable(folder: str | Path | None, endings: tuple[str, ...]) -> list[Path]:
    if folder is None:
        return []
    files = sorted(Path(folder).expanduser().iterdir())
    return [file for file in files if file.name.endswith(endings) and file.is_file()]
