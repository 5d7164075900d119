"""`flexlora-doctor` in this process, and rules that no accepted settings may break."""

import contextlib
import io
import math
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_helpers import composed
from fuzz_helpers import bounded
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

from flexlora.cli.command import Job, Task, refusal
from flexlora.cli.doctor import page
from flexlora.conf_path import conf_dir
from flexlora.doctor.findings import Mark
from flexlora.doctor.run_check import check_run
from flexlora.methods import check_method
from flexlora.models import check_model
from flexlora.results.folder import config_hash
from flexlora.results.record import Ending
from flexlora.settings import RunSettings, flat_keys
from flexlora.training.job import run_path


def command(job: Job, overrides: list[str]) -> tuple[Ending, str]:
    """How `flexlora-doctor <overrides>` ends with `job`, and what it says on stderr; a bug is raised."""
    program = "flexlora-doctor"
    with bounded(), contextlib.redirect_stderr(io.StringIO()) as stderr, pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")  # a library's are no line of the command's; pytest puts the filters back
        patch.setattr(sys, "argv", [program, *overrides])
        try:
            config = config_of(overrides)
            ending = Task(program, job)(config)
        except Exception as error:
            line = refusal(error)
            if line is None:
                raise
            ending = Ending("refused", line)
            print(f"{program}: {line}", file=sys.stderr)
    return ending, stderr.getvalue()


def config_of(overrides: list[str]) -> Any:
    """The composed config as the command gives it to its job."""
    config = composed(*overrides, with_hydra=True)
    HydraConfig.instance().set_config(config)
    OmegaConf.set_readonly(config, False)
    with open_dict(config):
        del config["hydra"]
    return config


MAY_BE_NEGATIVE = {
    "method.growth_lambda", "method.d_initial",
    "task.label_range", "method.layers_to_transform", "task.tsv.text", "task.tsv.label",
}  # fmt: skip


MAY_BE_ZERO = {
    "seed", "data_seed", "training.weight_decay", "training.warmup_ratio", "training.warmup_steps",
    "training.eval_every", "task.tsv.text", "task.tsv.label",
    "task.tsv.broken_rows", "method.tinit", "method.tfinal", "method.init_b", "method.orth_reg_weight",
    "method.lora_dropout", "method.modules_to_save", "method.target_modules",
}  # fmt: skip


def nonsense(plain: dict[str, Any]) -> Iterator[str]:
    """What no run should be given, by rules that know no setting; where one is an exception, it is listed above."""
    for key, value in flat_keys(plain).items():
        last = key.rpartition(".")[2]
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, bool) or not isinstance(item, int | float):
                continue
            if not math.isfinite(item):
                yield f"{key} is {item}"
            elif item < 0 and key not in MAY_BE_NEGATIVE:
                yield f"{key} is {item}, below 0"
            elif item == 0 and key not in MAY_BE_NEGATIVE | MAY_BE_ZERO and last not in zero_as_shipped():
                yield f"{key} is 0"


@cache
def zero_as_shipped() -> frozenset[str]:
    """Last names of the keys that some YAML sets to 0, such as a dropout."""
    shipped = (flat_keys(yaml.safe_load(file.read_text(encoding="utf-8")) or {}) for file in conf_dir().rglob("*.yaml"))
    zeros = (key for keys in shipped for key, value in keys.items() if _is_zero(value))
    return frozenset(key.rpartition(".")[2] for key in zeros) - {"learning_rate", "epochs", "batch_size"}


def _is_zero(value: Any) -> bool:
    """Whether a YAML's value is 0, or the default of a recipe's interpolation is."""
    return (value == 0 and value is not False) or str(value).endswith((",0.0}", ",0}"))


def check(settings: RunSettings, plain: dict[str, Any], typed: list[str]) -> Ending:
    """As far as the doctor goes before it loads data and model."""
    path = run_path(settings, typed)
    check_method(settings)
    assert not (found := list(nonsense(plain))), found
    root = Path(settings.output_root).expanduser()
    parts = path.relative_to(root).parts
    assert len(parts) == 5 + len(settings.task.name.split("/")), path
    assert ".." not in parts
    # A run that is killed is known by the config.yaml that it wrote.
    read: Any = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(plain))))
    assert config_hash(read) == config_hash(plain)
    return Ending("ready")


def examine(settings: RunSettings, plain: dict[str, Any], typed: list[str]) -> Ending:
    """All that the doctor does: data, tokens, model, method and memory; what it says is a page of whole lines."""
    check_model(settings.model)
    check(settings, plain, typed)
    findings = check_run(settings, plain, run_path(settings, typed))
    assert all(finding.text.isprintable() for finding in findings)
    page(findings)
    problems = [finding.text for finding in findings if finding.mark is Mark.problem]
    return Ending("not ready", problems[0]) if problems else Ending("ready")
