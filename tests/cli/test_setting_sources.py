"""Where a setting comes from: what `flexlora-doctor` shows beside its value."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from flexlora.conf_path import conf_dir
from flexlora.settings import register_schemas, resolve
from flexlora.settings.sources import sources


def places(folders: list[Path] | None = None, **chosen: str) -> dict[str, tuple[object, str]]:
    """`{setting: (value, where)}` of a run with these choices and overrides."""
    folders = folders or [conf_dir()]
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in chosen.items()]
    choices = {"model": "deberta_v3_base", "scale": "paper", "benchmark": "glue"} | chosen
    register_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        search = [f"hydra.searchpath=[{','.join(map(str, folders[1:]))}]"] if folders[1:] else []
        run, plain = resolve(compose("config", overrides=[*overrides, *search]), folders)
    typed = [item for item in overrides if "." in item.partition("=")[0]]
    return {item.setting: (item.value, item.where) for item in sources(run, plain, typed, choices, folders)}


def test_a_recipe_s_value_names_file_and_row():
    found = places(task="glue/cola", method="flexlora")
    row = "conf/method/flexlora.yaml, recipes, row 'glue/cola'"
    assert found["training.learning_rate"] == (8e-4, row)
    assert found["method.tinit"] == (1000, row)
    assert found["paper_steps"] == (5360, row)
    assert found["task.max_length"] == (64, "conf/task/glue/cola.yaml")
    assert not {"training.warmup_ratio", "method.r", "model.path", "training.epochs", "seed"} & found.keys()


def test_an_inherited_row_names_the_file_that_holds_it():
    found = places(task="glue/rte", method="adalora_r8")
    assert found["method.orth_reg_weight"] == (0.3, "conf/method/adalora.yaml, recipes, row 'glue/rte'")


def test_a_scale_and_its_rows_come_before_the_task():
    found = places(task="glue/cola", method="vera", scale="tiny")
    assert found["training.learning_rate"] == (0.01, "conf/method/vera.yaml, recipes, row 'tiny'")
    assert found["task.epochs"] == (3, "conf/scale/tiny.yaml, recipes, row 'tiny/glue'")
    assert found["model.path"] == (None, "conf/scale/tiny.yaml")
    assert places(task="glue/cola", method="lora", scale="tiny")["training.learning_rate"] == (
        0.003, "conf/scale/tiny.yaml, recipes, row 'tiny'",
    )  # fmt: skip


def test_the_command_line_and_an_experiment_are_named():
    found = places(task="glue/cola", method="lora", experiment="cost", training__batch_size="4")
    assert found["training.batch_size"] == (4, "command line")
    assert found["training.learning_rate"] == (1e-4, "conf/experiment/cost.yaml")


def test_what_a_benchmark_changes_is_named():
    found = places(task="vtab/kitti", method="lora", benchmark="vtab")
    assert found["training.lr_scheduler"] == ("cosine", "conf/benchmark/vtab.yaml")


@pytest.mark.parametrize("row", ["glue", "glue/cola"])
def test_a_file_of_one_s_own_is_named_by_its_path(row, tmp_path):
    (tmp_path / "method").mkdir()
    file = tmp_path / "method" / "mine.yaml"
    file.write_text(
        f"name: mine\nkind: peft\npeft_type: LORA\nr: ${{recipe:method.r,1}}\n"
        f"recipes: {{{row}: {{method.r: 4, training.learning_rate: 0.5}}}}\n",
        encoding="utf-8",
    )
    found = places([conf_dir(), tmp_path], task="glue/cola", method="mine")
    assert found["method.r"] == (4, f"{file}, recipes, row '{row}'")


def test_a_failed_read_of_a_yaml_is_not_kept(monkeypatch, tmp_path):
    """A read can fail once, for memory or an input error. A kept failure would drop the file's rows in silence."""
    from flexlora.settings import recipes

    file = tmp_path / "mine.yaml"
    file.write_text("recipes: {glue: {training.learning_rate: 1.0}}\n")
    with monkeypatch.context() as patch:
        patch.setattr(recipes, "read_yaml_text", lambda _: (_ for _ in ()).throw(MemoryError))
        assert recipes.read(file) == {}
    assert recipes.read(file) == {"recipes": {"glue": {"training.learning_rate": 1.0}}}
