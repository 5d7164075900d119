"""A hub that is slow, refuses, breaks off or says nothing: one line each, within seconds, and which of these it is."""

import errno
from pathlib import Path

import huggingface_hub.constants
import pytest
from glue_helpers import settings_of
from hub_helpers import COMMIT, Repository, hub

import flexlora.hub
from flexlora.errors import UserError
from flexlora.hub import trouble_with
from flexlora.tasks import load_task

LINES = {
    "gated": "ask for access on its page on the hub, then log in (hf auth login) or set HF_TOKEN",
    "unknown": "check the name, or log in (hf auth login) or set HF_TOKEN",
    "missing": "the hub has no such {kind}, or it is private",
    "refused": "the hub answers with error 403: log in (hf auth login) or set HF_TOKEN",
    "broken": "the hub answers with error 500",
    "silent": "the request to the hub failed (ReadTimeout: timed out)",
    "cut": "peer closed connection without sending complete message body",
}


@pytest.fixture(scope="module")
def columns(cola: Path, tmp_path_factory) -> Path:
    """CoLA as the hub has it: parquet files and a README.md that says which they are."""
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path_factory.mktemp("columns")
    (folder / "cola").mkdir()
    for split, file in (("train", "train.tsv"), ("validation", "dev.tsv")):
        rows = [line.split("\t") for line in (cola / "CoLA" / file).read_text().splitlines()]
        table = pyarrow.table({"sentence": [row[3] for row in rows], "label": [int(row[1]) for row in rows]})
        pyarrow.parquet.write_table(table, folder / "cola" / f"{split}.parquet")
    splits = "".join(f"  - split: {split}\n    path: cola/{split}.parquet\n" for split in ("train", "validation"))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: cola\n  data_files:\n{splits}---\n")
    return folder


@pytest.mark.slow
def test_every_trouble_is_a_line_and_what_was_fetched_is_enough(flexlora_run, arguments, tiny_bert, columns, tmp_path):
    rest = [item for item in arguments if not item.startswith(("model", "variant", "task.data_dir", "training.epochs"))]
    rest += ["method=linear", "training.max_steps=2", "model=roberta_base", f"model.revision={COMMIT}"]
    rest += [f"task.hub.revision={COMMIT}", f"output_root={tmp_path / 'out'}"]
    here = {"model.path": tiny_bert, "task.data_dir": next(item for item in arguments if "data_dir" in item)[14:]}
    home = tmp_path / "home"

    for key, kind, folder in (("model.path", "model", tiny_bert), ("task.hub.path", "dataset", columns)):
        other = "task.data_dir" if kind == "model" else "model.path"
        troubled = {trouble: Repository(folder, trouble) for trouble in LINES}
        names = ",".join(f"org/{name}" for name in [*troubled, "good"])
        with hub(home, delay=0.05, **troubled, good=Repository(folder, token="secret")) as variables:
            result = flexlora_run(
                "-m", *rest, f"{other}={here[other]}", f"{key}={names}",
                **{**variables, "HF_TOKEN": "secret", "HF_HUB_ETAG_TIMEOUT": "2"},
            )  # fmt: skip
        assert result.returncode == 2, result.stdout + result.stderr
        assert "8 runs: 7 refused, 1 done" in result.stdout
        # Within seconds, whatever the machine: one that has trouble is not asked again and again.
        asked = {trouble: repository.asked for trouble, repository in troubled.items() if trouble != "cut"}
        assert asked == {trouble: 3 if trouble == "broken" else 1 for trouble in asked}
        lines = result.stderr.strip().splitlines()
        assert len(lines) == len(LINES), result.stderr
        for (trouble, expected), line in zip(LINES.items(), lines, strict=True):
            assert line.startswith("flexlora-run: ")
            assert f"org/{trouble}" in line
            assert expected.format(kind=kind) in line
            assert ("model=local model.path=DIR" if kind == "model" else "task.data_dir=DIR") in line
        # What is tried again is told, but not as an error.
        assert "Trying to resume download" in result.stdout or kind == "dataset"

    # All is here now: that the hub is broken does not matter, and neither does who asks.
    with hub(home, good=Repository(tiny_bert, "broken")) as variables:
        result = flexlora_run(*rest, "model.path=org/good", "task.hub.path=org/good", "seed=1", **variables)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_every_trouble_of_a_hub_is_named(tmp_path, monkeypatch, kind):
    """The cheap part of the test above, in this process: every answer of a hub but silence and half a file."""
    troubles = {name: Repository(tmp_path, name) for name in ("gated", "unknown", "missing", "refused", "broken")}
    monkeypatch.setattr(flexlora.hub, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(flexlora.hub, "hub_is_offline", lambda: False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    (tmp_path / "README.md").write_text("here")
    with hub(tmp_path / "home", **troubles, good=Repository(tmp_path)) as variables:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", variables["HF_ENDPOINT"])
        monkeypatch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            variables["HF_ENDPOINT"] + "/{repo_id}/resolve/{revision}/{filename}",
        )
        for name, repository in troubles.items():
            said = trouble_with(f"org/{name}", kind)
            assert said is not None
            assert LINES[name].format(kind=kind) in said
            assert repository.asked == (3 if name == "broken" else 1)
        assert trouble_with("org/good", kind) is None


def test_a_cache_that_datasets_cannot_lock_is_no_data_set_that_is_missing(monkeypatch):
    import datasets

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system", "/cache/cola.lock")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr("flexlora.tasks.row_sources.trouble_with", lambda *_: "the hub cannot be reached")
    message = r"^datasets cannot write in its cache: /cache/cola.lock: Read-only file system \(HF_DATASETS_CACHE=DIR"
    with pytest.raises(UserError, match=message):
        load_task(settings_of("cola"))
