"""What a method chooses from gradients belongs to its run: a resumed run and a saved adapter keep it."""

import json
import shutil
import signal
from functools import partial

import pytest
from fault_helpers import strike
from runner_helpers import one_line

from flexlora.results.record import read_record
from flexlora.sharing import SharingPlan
from flexlora.testing.commands import COMMAND, run_command

STOP = partial(strike, "flexlora.training.loop:Loop._step", [signal.SIGTERM], 3)


@pytest.fixture(scope="module")
def command(arguments, tmp_path_factory):
    """Trains two layers with E²LoRA for six steps."""
    rest = [item for item in arguments if not item.startswith("training.epochs")]
    root = tmp_path_factory.mktemp("e2lora")
    return partial(run_command, COMMAND, *rest, "method=e2lora", "training.max_steps=6", f"output_root={root}"), root


@pytest.fixture(scope="module")
def stopped(command):
    """The command, and the folder of its run, which was stopped after step 3."""
    run, root = command
    assert run(fault=STOP).returncode == 143
    (record,) = root.rglob("result.json")
    return run, record.parent


def test_a_resumed_run_takes_its_first_choice_and_no_other(stopped):
    run, folder = stopped
    file = folder / "configuration.json"
    before = file.read_text(encoding="utf-8")
    plan = json.loads(before)
    interval = plan["types"][0]["intervals"][0]
    assert interval["rank"] > 1
    interval["rank"] -= 1
    file.write_text(json.dumps(plan), encoding="utf-8")
    assert one_line(run()).endswith(
        "the choice from gradients is not what it was when the run was stopped (configuration.json differs): begin a "
        "new one with variant=NAME"
    )
    file.write_text("[]", encoding="utf-8")
    assert "configuration.json is not a JSON object" in one_line(run())
    file.unlink()
    assert "configuration.json cannot be read: No such file or directory" in one_line(run())

    file.write_text(before, encoding="utf-8")
    result = run()
    assert result.returncode == 0, result.stderr
    record = read_record(folder / "result.json")
    assert record.resumed_at == [3]
    assert record.configuration == json.loads(before)
    saved = json.loads((folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert SharingPlan.from_dict(saved["plan"]) == SharingPlan.from_dict(record.configuration)

    file.write_text(before + " ", encoding="utf-8")
    assert "is finished, but configuration.json" in one_line(run())
    file.write_text(before, encoding="utf-8")


def test_a_run_from_an_adapter_takes_the_adapters_plan(stopped, tmp_path):
    """On other data its own gradients could choose another one, into which the tensors do not fit."""
    run, folder = stopped
    if read_record(folder / "result.json").status != "done":
        assert run().returncode == 0
    adapter = tmp_path / "adapter"
    shutil.copytree(folder / "adapter", adapter)
    file = adapter / "adapter_config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    values["plan"]["types"][0]["entropies"][0] = -1.25
    file.write_text(json.dumps(values), encoding="utf-8")
    result = run(f"adapter={adapter}", f"output_root={tmp_path}")
    assert result.returncode == 0, result.stderr
    (record,) = tmp_path.rglob("result.json")
    assert read_record(record).configuration == values["plan"]

    refused = run(f"adapter={adapter}", f"output_root={tmp_path}", "variant=again", "method.r=4")
    assert one_line(refused) == f"adapter: {adapter}: r=4, but the plan was made with r=8: give both the same."
    del values["plan"]
    file.write_text(json.dumps(values), encoding="utf-8")
    refused = run(f"adapter={adapter}", f"output_root={tmp_path}", "variant=again")
    assert one_line(refused) == f"adapter: {adapter} has no sharing plan in its adapter_config.json"


@pytest.mark.slow
def test_a_run_without_a_sound_checkpoint_chooses_and_starts_again(arguments, tmp_path):
    """GoRA's B starts from the gradients: a run that begins again must measure them again."""
    rest = [item for item in arguments if not item.startswith("training.epochs")]
    words = (*rest, "method=gora", "training.max_steps=6", "method.batches=2")
    roots = {name: tmp_path / name for name in ("unbroken", "damaged")}
    assert run_command(COMMAND, *words, f"output_root={roots['unbroken']}").returncode == 0
    again = partial(run_command, COMMAND, *words, f"output_root={roots['damaged']}")
    assert again(fault=STOP).returncode == 143
    (folder,) = (file.parent for file in roots["damaged"].rglob("result.json"))
    for file in (folder / "checkpoints").rglob("trained.safetensors"):
        file.write_bytes(file.read_bytes()[:-9])
    result = again()
    assert result.returncode == 0, result.stderr
    assert "there is no other, the run begins again" in result.stdout
    adapters = [next(root.rglob("adapter_model.safetensors")).read_bytes() for root in roots.values()]
    assert adapters[0] == adapters[1]
