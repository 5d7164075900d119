"""`method.ranks_from`: a finished run's final ranks, fixed from the first step on."""

import json

import pytest

from flexlora.results.record import read_record


@pytest.fixture(scope="module")
def finished(flexlora_run, arguments, tmp_path_factory):
    """The folder of a run of twelve steps with events."""
    root = tmp_path_factory.mktemp("finished")
    result = flexlora_run(
        *arguments, "method=flexlora", "schedule=absolute", "method.tinit=1", "method.tfinal=1", "method.deltaT=2",
        "training.max_steps=12", f"output_root={root}",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (file,) = root.rglob("result.json")
    return file.parent


def test_the_ranks_are_those_of_the_finished_run_from_the_first_step_on(flexlora_run, arguments, finished, tmp_path):
    result = flexlora_run(
        *arguments,
        "method=flexlora",
        f"method.ranks_from={finished}",
        "training.max_steps=4",
        f"output_root={tmp_path}",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (file,) = tmp_path.rglob("result.json")
    before, after = read_record(finished / "result.json"), read_record(file)
    assert before.rank_events["final_ranks"] == after.rank_events["final_ranks"]
    assert len(set(after.rank_events["final_ranks"].values())) > 1
    assert after.rank_events["count"] == 0
    assert after.parameters["adapter_active"] == before.parameters["adapter_active"]


def test_a_run_without_ranks_is_refused(flexlora_run, arguments, finished, tmp_path):
    run = [*arguments, "method=flexlora", f"output_root={tmp_path}"]
    missing = flexlora_run(*run, f"method.ranks_from={tmp_path / 'nowhere'}")
    assert missing.returncode == 2
    assert "method.ranks_from: " in missing.stderr
    assert "nowhere/result.json is not the record of a run" in missing.stderr
    values = json.loads((finished / "result.json").read_text(encoding="utf-8"))
    (tmp_path / "result.json").write_text(json.dumps({**values, "method": "lora", "rank_events": None}), "utf-8")
    without = flexlora_run(*run, f"method.ranks_from={tmp_path}")
    assert (without.returncode, "has no final ranks: its method is lora" in without.stderr) == (2, True)


def test_the_experiment_needs_ranks_from(flexlora_run, tmp_path):
    result = flexlora_run("experiment=transplant", "task=glue/cola", "seed=0", f"output_root={tmp_path}")
    assert result.returncode == 2, result.stdout
    assert "flexlora-run: method.ranks_from: FOLDER/result.json is not the record of a run" in result.stderr
