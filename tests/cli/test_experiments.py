"""conf/experiment: every sweep that has a name composes, each of its runs, and names settings that exist."""

import pytest
import yaml
from compose_helpers import composed
from omegaconf import OmegaConf

from flexlora.conf_path import conf_dir
from flexlora.report.tables import TABLES
from flexlora.settings import resolve

EXPERIMENTS = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))
# What has to be given on the command line.
NEEDED = {
    "transplant": ["task=glue/cola", "++method.ranks_from=outputs"],
    "budget_match": ["task=glue/cola", "parameter_budget=1000000"],
    "lr_sweep": ["task=glue/cola", "method=lora"],
    "cost": ["task=glue/cola"],
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_first_and_the_last_run_of_an_experiment_compose(name):
    sweep = composed(f"experiment={name}", *NEEDED.get(name, []), with_hydra=True).hydra
    assert OmegaConf.select(sweep, "mode").name == "MULTIRUN"
    params = OmegaConf.to_container(sweep.sweeper.params)
    assert params
    for end in (0, -1):
        chosen = [f"{key}={str(values).split(',')[end]}" for key, values in params.items()]
        settings, _ = resolve(composed(f"experiment={name}", *NEEDED.get(name, []), *chosen))
        assert settings.task.name != "none"


def test_every_experiment_says_what_it_is_for():
    for path in (conf_dir() / "experiment").glob("*.yaml"):
        package, says = path.read_text(encoding="utf-8").splitlines()[:2]
        assert package == "# @package _global_"
        assert says.startswith("# ")
        assert len(says) > 20


@pytest.mark.parametrize(
    ("experiment", "table"),
    [
        ("glue", "glue"),
        ("commonsense170k", "commonsense170k"),
        ("commonsense170k_r32", "commonsense170k"),
        ("vtab", "vtab"),
        ("vtab_table16", "vtab_table16"),
        ("e2_glue", "e2_glue"),
        ("e2_glue_full", "e2_glue"),
        ("e2_gsm8k", "e2_nlg"),
        ("e2_humaneval", "e2_nlg"),
        ("e2_images", "e2_images"),
    ],
)
def test_what_an_experiment_runs_has_its_place_in_the_table(experiment, table):
    """Others stand below it, in the order of the alphabet."""
    sweep = yaml.safe_load((conf_dir() / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8"))
    assert set(sweep["hydra"]["sweeper"]["params"]["method"].split(",")) <= set(TABLES[table].methods)
