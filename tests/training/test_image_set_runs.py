"""A folder of images from the command line: from the settings to the record, and what a finished run is held to."""

import pytest
from image_set_helpers import draw, write_folders
from vtab_helpers import write_vit

from flexlora.results.record import read_record


@pytest.mark.slow  # a run and two starts of the command, about 15 CPU seconds
def test_a_folder_is_trained_on_once_and_a_changed_image_is_noticed(flexlora_run, tmp_path):
    """A run is needed: the classes of a folder are known only after it was read, and the record keeps its stamps."""
    folder = write_folders(tmp_path / "data")
    words = [
        "task=images/folder", "method=e2lora", "model=local", f"model.path={write_vit(tmp_path / 'vit')}",
        f"task.data_dir={folder}", "training.epochs=2", "training.batch_size=4", f"output_root={tmp_path / 'runs'}",
    ]  # fmt: skip
    result = flexlora_run(*words)
    assert result.returncode == 0, result.stderr
    (path,) = (tmp_path / "runs").glob("local/images/data/vit/e2lora/*/seed0/result.json")
    record = read_record(path)
    assert record.status == "done"
    assert record.samples == {"train": 12, "evaluation": {"test": 6}}
    assert (record.data["layout"], record.data["sizes"]) == ("folders", {"train": [12], "test": [6]})
    assert record.parameters["head"] == 3 * (32 + 1)
    assert "attn.q_proj" in str(record.configuration)  # query, key and value are three types of linears
    assert "is finished: skipped" in flexlora_run(*words).stdout
    draw(folder / "train" / "ant" / "000.png", 2, 999)
    again = flexlora_run(*words)
    assert str(folder / "train" / "ant") in again.stdout + again.stderr  # only a task knows which images it read
