"""`FlexLoraConfig.for_training`: the windows of a recipe, for a training of any length, as the runner scales them."""

import pytest
from compose_helpers import settings_of_run

from flexlora import FlexLoraConfig, recipe
from flexlora.methods.base import RunContext
from flexlora.methods.peft import scale_windows
from flexlora.settings import Schedule

WINDOWS = ("tinit", "tfinal", "deltaT")


@pytest.mark.parametrize("total_step", [30, 500, 5360, 20000])
@pytest.mark.parametrize("task", ["glue/cola", "glue/stsb", "vtab/cifar100", "commonsense170k"])
def test_windows_are_those_of_a_run_with_as_many_steps(task: str, total_step: int) -> None:
    run = settings_of_run(f"task={task}", "method=flexlora")
    fields = {name: run.method.fields[name] for name in WINDOWS}
    scale_windows(fields, RunContext(total_step, Schedule.scaled, run.paper_steps, seed=0, target_modules=None))
    config = FlexLoraConfig.for_training(total_step, like=task)
    assert {name: getattr(config, name) for name in WINDOWS} == fields
    assert config.total_step == total_step
    assert config.init_b == run.method.fields["init_b"]
    assert len(config.event_steps()) > 0


def test_the_paper_s_length_gives_the_paper_s_windows() -> None:
    config = FlexLoraConfig.for_training(5360, like="glue/cola")
    assert (config.tinit, config.tfinal, config.deltaT) == (1000, 1000, 200)


def test_other_numbers_of_the_recipe_count_and_fields_replace_them() -> None:
    assert FlexLoraConfig.for_training(1000, like="commonsense170k").lora_dropout == 0.05
    config = FlexLoraConfig.for_training(1000, like="commonsense170k", lora_dropout=0.0, tinit=7, r=4)
    assert (config.lora_dropout, config.tinit, config.r) == (0.0, 7, 4)


def test_a_recipe_has_the_learning_rate_of_the_runner() -> None:
    run = settings_of_run("task=glue/rte", "method=flexlora")
    assert recipe("glue/rte")["training.learning_rate"] == run.training.learning_rate


def test_a_task_without_a_row_has_its_benchmark_s() -> None:
    assert recipe("vtab/cifar100") == recipe("vtab")


@pytest.mark.parametrize("name", ["glue/colla", "vtab/cifar", "", "nothing"])
def test_an_unknown_recipe_is_refused_with_the_list(name: str) -> None:
    with pytest.raises(ValueError, match=r"there is no recipe '.*There are: glue/cola"):
        FlexLoraConfig.for_training(100, like=name)


@pytest.mark.parametrize("steps", [0, -5, 1.5, True, "10"])
def test_a_number_of_steps_that_is_none_is_refused(steps: object) -> None:
    with pytest.raises(ValueError, match="`total_step` must be a whole number of at least 1"):
        FlexLoraConfig.for_training(steps, like="glue/cola")


def test_too_few_steps_for_an_event_are_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match="no rank event is possible: with total_step=1"):
        FlexLoraConfig.for_training(1, like="glue/cola")
