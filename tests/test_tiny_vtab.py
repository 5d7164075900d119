"""`scale=tiny` for VTAB-1K: scikit-learn's digits, and a ViT that is pretrained here."""

import numpy as np
import pytest
from vtab_helpers import composed

from flexlora.errors import UserError
from flexlora.models import load_backbone
from flexlora.results.record import read_record
from flexlora.tasks.digits import RELATIVES, load

TINY = ("scale=tiny", "method=lora")
TASK = "vtab/svhn"


def task(name: str, *overrides: str):
    return load(composed(f"task={name}", *TINY, *overrides).task)


@pytest.mark.parametrize("name", RELATIVES)
def test_its_tasks_have_the_shape_of_the_benchmark(name):
    made = task(name)
    sizes = {"train": len(made.train_rows), **{key: len(rows) for key, rows in made.evaluation_rows.items()}}
    assert sizes == {"train": 1000, "test": 797}
    classes = RELATIVES[name][0]
    for rows in (made.train_rows, *made.evaluation_rows.values()):
        assert set(rows.labels) == set(range(classes))


def test_no_digit_is_in_both_parts_and_all_is_the_same_everywhere():
    made, again = task(TASK), task(TASK)
    train, test = made.train_rows, made.evaluation_rows["test"]
    assert not set(map(bytes, train.images)) & set(map(bytes, test.images))
    assert list(map(bytes, train.images)) == list(map(bytes, again.train_rows.images))
    held = task(TASK, "task.split=train800_val200")
    assert (len(held.train_rows), {name: len(rows) for name, rows in held.evaluation_rows.items()}) == (
        800,
        {"val": 200},
    )
    assert held.provenance["held_out"] == 200


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("task.data_dir=somewhere",), "scale=tiny makes its data: leave out task.data_dir"),
        (("task.num_classes=7",), "task.num_classes is 7, vtab/svhn has 10 at scale=tiny"),
    ],
)
def test_what_it_does_not_take(overrides, said):
    with pytest.raises(UserError) as refused:
        task(TASK, *overrides)
    assert said in str(refused.value)


def test_a_task_that_has_no_relative_is_one_line():
    with pytest.raises(UserError, match="scale=tiny has no task vtab/dtd: it has vtab/svhn"):
        task("vtab/dtd")


def test_a_model_of_one_s_own_is_not_taken():
    settings = composed(f"task={TASK}", *TINY).model
    settings.path = "somewhere"
    with pytest.raises(UserError, match="scale=tiny makes its own small model"):
        load_backbone(settings, 10)


@pytest.mark.slow
def test_adapting_beats_the_linear_probe_and_ranks_move(flexlora_run, tmp_path):
    """Three seeds: by a tenth and more, and some matrix ends two above rank 8, some two below."""
    accuracy: dict[str, list[float]] = {}
    ranks: list[int] = []
    for method in ("linear", "lora", "flexlora"):
        for seed in range(3):
            result = flexlora_run(
                f"task={TASK}", "scale=tiny", f"method={method}", f"seed={seed}", f"output_root={tmp_path}"
            )
            assert result.returncode == 0, result.stderr
            record = read_record(tmp_path / f"tiny/{TASK}/vit_b16/{method}/default/seed{seed}/result.json")
            accuracy.setdefault(method, []).append(record.metrics["last"]["accuracy"])
            if method == "flexlora":
                ranks += record.rank_events["final_ranks"].values()
    gains = {method: np.subtract(accuracy[method], accuracy["linear"]) for method in ("lora", "flexlora")}
    assert min(gains["lora"].min(), gains["flexlora"].min()) >= 0.10, accuracy
    assert min(ranks) <= 6
    assert max(ranks) >= 10
