"""VTAB-1K from the command line: a small ViT on small images, from the settings to the record."""

import json
import re
import signal
from functools import partial
from pathlib import Path

import pytest
from compose_helpers import settings_of_run
from fault_helpers import strike
from runner_helpers import one_line
from vtab_helpers import CLASSES, TASKS, write_task, write_vit

from flexlora.conf_path import conf_dir
from flexlora.results.predictions import LAST, read_answers
from flexlora.results.record import read_record
from flexlora.settings import LrScheduler
from flexlora.testing.commands import COMMAND, run_command
from flexlora.testing.comparing import differences

METHODS = ["lora", "adalora", "adalora_r8", "bitfit", "full", "linear", "flexlora", "flexlora_released"]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("vtab")
    write_task(folder / "data" / "kitti", train=40, val=8, test=24)
    vit = write_vit(folder / "vit")
    return [
        "task=vtab/kitti",
        "model=local",
        f"model.path={vit}",
        f"task.data_dir={folder / 'data'}",
        "training.epochs=12",
        "training.batch_size=8",
        "training.learning_rate=1e-2",
        "variant=test",
    ]


def record_of(root: Path, method: str, seed: int = 0):
    return read_record(root / f"local/vtab/kitti/vit/{method}/test/seed{seed}/result.json")


def test_flexlora_from_settings_to_record(flexlora_run, arguments, tmp_path):
    result = flexlora_run(*arguments, "method=flexlora", f"output_root={tmp_path}")
    assert result.returncode == 0, result.stderr
    record = record_of(tmp_path, "flexlora")
    assert record.status == "done"
    assert record.metrics["last"]["accuracy"] > 0.6  # a quarter by chance
    assert len(record.history) == 1  # at the end only
    assert record.samples == {"train": 48, "evaluation": {"test": 24}}
    assert record.data["layout"] == "vtab-1k"
    assert record.data["sizes"] == {"train800val200.txt": [48, 1000], "test.txt": [24, 711]}
    assert set(record.data["sha256"]) == {"train800val200.txt", "test.txt", "images of train", "images of test"}
    assert (
        "test.txt has 24 rows, but VTAB-1K has 711: this is not the benchmark's split" in result.stdout + result.stderr
    )
    assert record.rank_events["count"] > 5
    assert record.parameters["head"] == 4 * 33
    assert record.tokens == {"real": 48 * 12, "padded": 48 * 12}
    rows = (tmp_path / "local/vtab/kitti/vit/flexlora/test/seed0/metrics.jsonl").read_text().splitlines()
    answers = read_answers(tmp_path / "local/vtab/kitti/vit/flexlora/test/seed0" / LAST)
    predictions, labels = answers.predictions["test"], answers.labels["test"]
    assert list(labels) == [number % CLASSES for number in range(24)]  # as write_task lists them
    assert (predictions == labels).mean() == pytest.approx(record.metrics["last"]["accuracy"])
    rates = [json.loads(row)["learning_rate"] for row in rows if json.loads(row)["kind"] == "train"]
    assert rates[0] > rates[-1] == 0.0

    report = flexlora_run_report(result, tmp_path)
    assert "kitti" in report.lower()


def flexlora_run_report(result, root: Path) -> str:
    report = run_command(COMMAND.with_name("flexlora-report"), str(root))
    assert report.returncode == 0, report.stderr
    return report.stdout


def test_what_was_saved_is_the_model(arguments, tmp_path, flexlora_run):
    """The adapter over timm's model gives the accuracy that was recorded, in plain PEFT and torch."""
    import torch
    from peft import PeftModel

    import flexlora  # noqa: F401 - its adapter is known to PEFT by it
    from flexlora.models import load_backbone
    from flexlora.tasks import load_task

    result = flexlora_run(*arguments, "method=flexlora", f"output_root={tmp_path}")
    assert result.returncode == 0, result.stderr
    run = settings_of_run(*arguments, "method=flexlora")
    backbone = load_backbone(run.model, 4)
    task = load_task(run.task)
    task.preprocess(backbone.processor)
    model = PeftModel.from_pretrained(
        backbone.model, str(tmp_path / "local/vtab/kitti/vit/flexlora/test/seed0/adapter")
    ).eval()
    split = task.evaluation[0]
    batch = task.collate([split.examples[i] for i in range(len(split))])
    with torch.no_grad():
        _, predicted = task.predict(model, batch)
    scores = task.score(split, predicted.tolist())
    assert scores["accuracy"] == record_of(tmp_path, "flexlora").metrics["last"]["accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["adalora", "full"])
def test_other_methods(flexlora_run, arguments, tmp_path, method):
    result = flexlora_run(*arguments, f"method={method}", f"output_root={tmp_path}")
    assert result.returncode == 0, result.stderr
    assert record_of(tmp_path, method).metrics["last"]["accuracy"] > 0.5


def test_augmentation_is_the_same_after_an_interruption(flexlora_run, arguments, tmp_path):
    """A run that is stopped in the middle of an epoch and resumed equals one that was not stopped, bit for bit."""
    more = ["method=lora", "task.random_resized_crop=0.5", "task.horizontal_flip=0.5", "training.log_every=1"]
    whole = flexlora_run(*arguments, *more, f"output_root={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    stop = partial(strike, "flexlora.training.loop:Loop._step", [signal.SIGINT], 8)
    stopped = flexlora_run(*arguments, *more, f"output_root={tmp_path / 'stopped'}", fault=stop)
    assert stopped.returncode == 130, stopped.stderr
    again = flexlora_run(*arguments, *more, f"output_root={tmp_path / 'stopped'}")
    assert again.returncode == 0, again.stderr
    path = "local/vtab/kitti/vit/lora/test/seed0"
    assert differences(tmp_path / "whole" / path, tmp_path / "stopped" / path) == []
    assert read_record(tmp_path / "stopped" / path / "result.json").resumed_at == [8]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task.data_dir=null"], "task.data_dir is not set: set task.data_dir=DIR, a folder"),
        (["task.num_classes=5"], "set task.num_classes=4"),
        (["task.num_classes=1"], "task.num_classes must be between 2 and 65536, not 1"),
        (["task.horizontal_flip=2"], "task.horizontal_flip must be between 0 and 1"),
        (["task.split=test"], "task.split"),
        (["task.normalization=mine"], "task.normalization"),
        (["task.image_cache="], "task.image_cache is empty"),
        (["model.kind=sequence_classifier"], "model.path: architecture 'timm_wrapper' is not supported"),
    ],
)
def test_a_refusal_is_one_line(flexlora_run, arguments, tmp_path, overrides, said):
    result = flexlora_run(*arguments, "method=lora", *overrides, f"output_root={tmp_path}")
    assert result.returncode == 2
    assert re.search(said, result.stderr), result.stderr
    assert "Traceback" not in result.stderr


def test_bad_images_are_one_line(flexlora_run, arguments, tmp_path):
    folder = write_task(tmp_path / "kitti")
    (folder / "images/test/000002.png").write_text("not an image")
    (folder / "images/train800/000001.png").unlink()
    result = flexlora_run(*arguments, "method=lora", f"task.data_dir={tmp_path}", f"output_root={tmp_path / 'runs'}")
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("flexlora-run: ")]
    assert (
        "2 images cannot be read: images/train800/000001.png (is missing), images/test/000002.png (is not an image)"
        in line
    )


@pytest.mark.parametrize(
    ("file", "row", "said"),
    [
        ("test", "images/test/000000.png 4", "test.txt line 1: label 4 is not between 0 and 3 (task.num_classes is 4)"),
        (
            "train800val200",
            "../kitti/images/test/000000.png 0",
            "'../kitti/images/test/000000.png' is outside the folder",
        ),
        ("test", None, "test.txt is empty"),
    ],
)
def test_a_bad_list_is_one_line(flexlora_run, arguments, tmp_path, file, row, said):
    path = write_task(tmp_path / "kitti") / f"{file}.txt"
    _, *lines = path.read_text().splitlines()
    path.write_text("" if row is None else "\n".join([row, *lines]))
    result = flexlora_run(*arguments, "method=lora", f"task.data_dir={tmp_path}", f"output_root={tmp_path / 'runs'}")
    assert result.returncode == 2
    assert one_line(result).startswith("task.data_dir: ")
    assert said in result.stderr


def test_the_doctor(arguments, tmp_path):
    doctor = COMMAND.with_name("flexlora-doctor")
    local = run_command(doctor, *arguments, "method=flexlora", f"output_root={tmp_path}")
    assert local.returncode == 0, local.stdout + local.stderr
    assert "48 to train on, 24 test to evaluate on" in local.stdout
    assert "8 × 3 × 32 × 32" in local.stdout
    paper = run_command(doctor, "task=vtab/cifar100", "method=flexlora", f"output_root={tmp_path}", COLUMNS="100")
    assert paper.returncode == 1  # neither data nor weights are here
    assert "1,180,032 active" in paper.stdout
    assert "exact shapes, hub not asked" in paper.stdout
    assert re.search(r"memory\n.*\n.*\n.*32 × 3 × 224 × 224", paper.stdout)


def test_settings_are_table_11s():
    run = settings_of_run("task=vtab/dmlab", "method=flexlora")
    training, method = run.training, run.method.fields
    assert (training.learning_rate, training.batch_size, training.epochs) == (1e-3, 32, 100)
    assert [method[name] for name in ("init_b", "tinit", "tfinal", "deltaT")] == [4, 500, 500, 100]
    assert (run.paper_steps, method["r"], run.model.name) == (3200, 8, "vit_b16")
    assert (training.weight_decay, training.lr_scheduler, training.warmup_ratio) == (0.0, LrScheduler.cosine, 0.1)


def test_table_16_is_an_experiment():
    runs = [settings_of_run("experiment=vtab_table16", "task=vtab/dtd", f"method={method}") for method in METHODS]
    assert {(run.training.learning_rate, run.training.weight_decay, run.variant) for run in runs} == {
        (2e-3, 1e-3, "table16")
    }
    assert settings_of_run("experiment=vtab", "task=vtab/dtd", "method=lora").training.learning_rate == 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_recipe(method):
    """Composed whole for each task."""
    for task in (TASKS[0], TASKS[-1]):
        assert settings_of_run(f"task=vtab/{task}", f"method={method}").training.learning_rate > 0


def test_the_experiment_is_all_19_tasks():
    from omegaconf import OmegaConf

    experiment = OmegaConf.load(conf_dir() / "experiment" / "vtab.yaml")
    assert sorted(experiment.hydra.sweeper.params.task.split(",")) == [f"vtab/{task}" for task in TASKS]
