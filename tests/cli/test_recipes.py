"""Recipes: the papers' numbers as the papers print them, and no combination that lacks one."""

import math

import pytest
from glue_helpers import TASKS
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from flexlora.baselines.noah import MODULES, Subnet
from flexlora.conf_path import conf_dir
from flexlora.errors import UserError
from flexlora.settings import flat_keys, register_schemas, resolve

# Of the paper's tables on images alone: they have no recipe for text, and must be given a learning rate there.
VISION = {"adaptformer", "fact_tk", "fact_tt", "noah", "noah_supernet", "ssf", "vpt_deep", "vpt_shallow"}
METHODS = sorted({path.stem for path in (conf_dir() / "method").glob("*.yaml")} - VISION)
# Of no use to a language model: no head to train, or no biases in a LLaMA; adapters of other tasks to fuse.
NOT_CAUSAL = {"linear", "bitfit", "adapter_fusion"}
CAUSAL = sorted({*METHODS} - NOT_CAUSAL)

GLUE = "benchmark_recipe/glue"
SAID = ("Table", "script", "code", "command", "finetune.py", "no paper gives", "No paper gives")

# Training rows of each task.
ROWS = {
    "cola": 8551,
    "mnli": 392702,
    "mrpc": 3668,
    "rte": 2490,
    "qnli": 104743,
    "sst2": 67349,
    "stsb": 5749,
    "qqp": 363846,
}
# FlexLoRA's Table 8: length, learning rate, epochs, t_warmup = t_final, delta T; batch 32.
TABLE_8 = {
    "cola": (64, 8e-4, 20, 1000, 200),
    "mnli": (256, 5e-4, 12, 5000, 1000),
    "mrpc": (256, 1e-3, 30, 500, 100),
    "rte": (512, 1.2e-3, 50, 500, 100),
    "qnli": (256, 5e-4, 5, 1000, 200),
    "sst2": (256, 8e-4, 20, 5000, 1000),
    "stsb": (256, 2.2e-3, 20, 1000, 200),
    "qqp": (320, 8e-4, 5, 5000, 1000),
}
# QingruZhang/AdaLoRA d10f5eb, NLU/scripts: learning rate, epochs, init and final warmup, mask interval, coefficient.
ADALORA = {
    "cola": (8e-4, 25, 800, 3500, 10, 0.1),
    "mnli": (5e-4, 7, 8000, 50000, 100, 0.1),
    "mrpc": (1e-3, 30, 600, 1800, 1, 0.1),
    "rte": (1.2e-3, 50, 600, 1800, 1, 0.3),
    "qnli": (5e-4, 5, 2000, 8000, 100, 0.1),
    "sst2": (8e-4, 24, 6000, 22000, 100, 0.1),
    "stsb": (2.2e-3, 25, 800, 2000, 10, 0.3),
    "qqp": (8e-4, 5, 8000, 25000, 100, 0.1),
}
LORA_TABLE_9 = {
    "mnli": 5e-4,
    "sst2": 5e-4,
    "mrpc": 4e-4,
    "cola": 4e-4,
    "qnli": 4e-4,
    "qqp": 5e-4,
    "rte": 5e-4,
    "stsb": 4e-4,
}


def composed(*overrides: str):
    register_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return resolve(compose("config", overrides=list(overrides)))[0]


def recipe(task: str, method: str):
    return OmegaConf.load(conf_dir() / "recipe" / "glue" / task / f"{method}.yaml")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_its_numbers_for_every_task(task, method):
    """Composed whole, with nothing left to say, and from a recipe of its own: no learning rate is inherited."""
    run = composed(f"task=glue/{task}", f"method={method}")
    assert "???" not in flat_keys(run.method).values()
    assert run.training.learning_rate > 0
    assert any((conf_dir() / folder / f"{method}.yaml").is_file() for folder in (f"recipe/glue/{task}", GLUE))


@pytest.mark.parametrize("method", CAUSAL)
def test_every_method_has_its_numbers_for_commonsense170k(method):
    """Composed whole, from a recipe of its own; what the paper gives every method (Table 9) stays as it is."""
    run = composed("task=commonsense170k", f"method={method}")
    assert "???" not in flat_keys(run.method).values()
    assert run.training.learning_rate > 0
    assert (conf_dir() / "benchmark_recipe" / "commonsense170k" / f"{method}.yaml").is_file()
    assert (run.training.batch_size, run.training.epochs, run.training.warmup_steps) == (16, 3, 100)
    assert (run.task.max_length, run.training.lr_scheduler.value) == (256, "linear")
    dropout = {key: value for key, value in run.method.items() if key.endswith("a_dropout")}
    assert {*dropout.values()} == ({0.05} if dropout else set()), "Table 9, and every source at hand"


# Learning rates of the methods' own authors, or of LLM-Adapters; all others have LoRA's.
COMMONSENSE = {
    "dora": 1e-4,
    "flora": 1e-4,
    "full": 1e-5,
    "hira": 1e-3,
    "liera": 1e-4,
    "lora_dash": 1e-4,
    "lori": 5e-4,
    "vera": 1e-3,
}


@pytest.mark.parametrize("method", CAUSAL)
def test_rates_on_commonsense170k_are_the_sources(method):
    assert composed("task=commonsense170k", f"method={method}").training.learning_rate == COMMONSENSE.get(method, 3e-4)


@pytest.mark.parametrize("method", sorted(NOT_CAUSAL | VISION))
def test_other_methods_have_no_learning_rate_for_commonsense170k(method):
    with pytest.raises(UserError, match=r"training\.learning_rate is not set"):
        composed("task=commonsense170k", f"method={method}")


@pytest.mark.parametrize("task", TASKS)
def test_flexlora_is_table_8(task):
    length, rate, epochs, window, interval = TABLE_8[task]
    run = composed(f"task=glue/{task}", "method=flexlora")
    assert (run.task.max_length, run.training.epochs, run.training.batch_size) == (length, epochs, 32)
    assert run.training.learning_rate == rate
    assert (run.training.warmup_ratio, run.method["r"], run.method["lora_alpha"], run.method["init_b"]) == (
        0.1,
        8,
        16,
        4,
    )
    assert [run.method[name] for name in ("tinit", "tfinal", "deltaT")] == [window, window, interval]
    assert run.paper_steps == math.ceil(ROWS[task] / 32) * epochs


@pytest.mark.parametrize("task", TASKS)
def test_adalora_is_its_authors_script(task):
    rate, epochs, init, final, interval, weight = ADALORA[task]
    recipe_ = recipe(task, "adalora")
    assert recipe_.training.learning_rate == rate
    assert dict(recipe_.method) == {"tinit": init, "tfinal": final, "deltaT": interval, "orth_reg_weight": weight}
    assert recipe_.paper_steps == math.ceil(ROWS[task] / 32) * epochs
    assert init + final < recipe_.paper_steps


@pytest.mark.parametrize("task", TASKS)
def test_the_other_baselines_have_rates_of_their_own_sources(task):
    rates = {method: recipe(task, method).training.learning_rate for method in ("lora", "full", "bitfit", "linear")}
    assert rates == {
        "lora": LORA_TABLE_9[task],
        "full": 1.5e-5 if task == "mnli" else 2e-5,
        "bitfit": 1e-3,
        "linear": 1e-3,
    }


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("method", "other"), [("flexlora_released", "flexlora"), ("adalora_r8", "adalora")], ids=["released", "rank 8"]
)
def test_a_variant_has_its_methods_numbers(task, method, other):
    if method not in METHODS:
        pytest.skip(f"there is no method {method} yet")
    a, b = composed(f"task=glue/{task}", f"method={method}"), composed(f"task=glue/{task}", f"method={other}")
    assert (a.training, a.paper_steps) == (b.training, b.paper_steps)
    assert [a.method[name] for name in ("tinit", "tfinal", "deltaT")] == [
        b.method[name] for name in ("tinit", "tfinal", "deltaT")
    ]


@pytest.mark.parametrize("method", sorted(VISION))
def test_a_method_for_images_has_no_learning_rate_for_text(method):
    with pytest.raises(UserError, match=r"training\.learning_rate is not set"):
        composed("task=glue/cola", f"method={method}")


# JieShibo/PETL-ViT 026e4f1: the ranks and scales behind Table 16's FacT, by task.
FACT_TK = {32: 13, 16: 6}


def test_fact_has_the_parameters_of_table_16():
    """0.07M are the mean over the 19 tasks of its Tucker form at ranks of 16 and 32 on ViT-B/16."""
    ranks = [OmegaConf.load(path).method.r for path in (conf_dir() / "recipe" / "vtab").glob("*/fact_tk.yaml")]
    assert {rank: ranks.count(rank) for rank in set(ranks)} == FACT_TK
    parameters = [2 * 768 * rank + rank**3 + 12 * 12 * rank for rank in ranks]
    assert round(sum(parameters) / len(parameters) / 1e6, 2) == 0.07


def test_noah_has_the_parameters_of_table_16():
    """0.36M are the mean over the 19 tasks of the published subnets on ViT-B/16."""
    sizes = [OmegaConf.load(path).method for path in (conf_dir() / "recipe" / "vtab").glob("*/noah.yaml")]
    subnets = [Subnet(*(tuple(size[name]) for name in MODULES)) for size in sizes]
    assert len(subnets) == 19
    assert {len(getattr(subnet, name)) for subnet in subnets for name in MODULES} == {12}
    assert round(sum(subnet.parameters(768) for subnet in subnets) / 19) == 360_134


@pytest.mark.parametrize(
    "path",
    sorted(path for folder in ("recipe", "benchmark_recipe") for path in (conf_dir() / folder).rglob("*.yaml")),
    ids=lambda path: path.stem,
)
def test_every_number_of_a_recipe_says_where_it_is_from(path):
    """A source above the numbers, or beside them, or that there is none."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith("# ")
    rate = [line for line in lines if "learning_rate:" in line]
    sourced = [line for line in [*rate, *lines[1:4]] if any(word in line for word in SAID)]
    assert sourced or "defaults:" in lines, path
