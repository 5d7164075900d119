"""The how-to pages of a baseline and an importance: what a reader writes there works from outside the package."""

import json

import pytest
from method_helpers import context, tiny
from page_helpers import commands, write_files

import flexlora
from flexlora.errors import UserError
from flexlora.methods import build_method
from flexlora.settings import MethodSettings
from flexlora.testing.commands import RunCommand

# Of a training of a few steps.
WINDOWS = {"add-an-importance-metric.md": ["method.tinit=0", "method.tfinal=0", "method.deltaT=1"]}


def run_page(page, flexlora_run: RunCommand, arguments, tmp_path):
    """The page's training, on the tests' own model and data, and its record."""
    write_files(page, tmp_path)
    (words,) = commands(page, "flexlora-run")
    mine = str(tmp_path / "mine")
    given = [mine if word == "mine" else word for word in words if word != "scale=tiny"]
    ours = [argument for argument in arguments if not argument.startswith(("task=", "training.learning_rate"))]
    result = flexlora_run(
        *given, *ours, f"output_root={tmp_path}", "training.epochs=1", "schedule=absolute", *WINDOWS.get(page, ()),
        PYTHONPATH=mine,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    (file,) = tmp_path.rglob("result.json")
    return json.loads(file.read_text(encoding="utf-8"))


def test_a_baseline_from_outside_trains_as_the_page_says(flexlora_run, arguments, tmp_path):
    record = run_page("add-a-baseline.md", flexlora_run, arguments, tmp_path)
    assert (record["status"], record["method"]) == ("done", "diagonal")
    # Rank 4 and a gain a direction, on six linears of two layers with hidden size 32 and 64 in the feed-forward.
    assert record["parameters"]["adapter_active"] == 2 * 4 * (4 * (32 + 32 + 1) + 2 * (32 + 64 + 1))
    assert record["config"]["training"]["learning_rate"] == 1e-3


def test_an_importance_from_outside_changes_ranks_as_the_page_says(flexlora_run, arguments, tmp_path):
    record = run_page("add-an-importance-metric.md", flexlora_run, arguments, tmp_path)
    assert (record["status"], record["config"]["method"]["importance"]) == ("done", "participation")
    assert record["rank_events"]["count"] > 0


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder that Python imports from."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def method(peft_type: str, **fields) -> MethodSettings:
    return MethodSettings("mine", "peft", {"peft_type": peft_type, **fields})


TAKEN = """
from flexlora.baselines.low_rank import LowRankConfig, LowRankLayer, LowRankModel

class Config(LowRankConfig): ...
class Layer(LowRankLayer): ...
class Model(LowRankModel, name="lora", config=Config, layer=Layer): ...
"""


def test_an_invalid_registration_is_refused_in_one_line(mine):
    (mine / "takes_lora.py").write_text(TAKEN, encoding="utf-8")
    (mine / "takes_entropy.py").write_text(
        "from flexlora.tuner.importance import importance\nimportance('entropy')(lambda values, active: active)\n",
        encoding="utf-8",
    )
    refused = {
        "takes_lora": r"importing 'takes_lora' fails: ValueError: a tuner named 'lora' already exists \(peft\.",
        "takes_entropy": r"importing 'takes_entropy' fails: ValueError: an importance named 'entropy' already exists",
        "is_nowhere": r"Python finds no module 'is_nowhere'",
        "no module": r"'no module' is not the name of a Python module",
    }
    for module, message in refused.items():
        with pytest.raises(UserError, match=rf"^method\.python_module: {message}"):
            build_method(method("LORA", python_module=module), context("bert"))


def test_a_registered_importance_is_taken_and_others_are_listed(mine):
    write_files("add-an-importance-metric.md", mine)
    (mine / "mine" / "participation.py").rename(mine / "participation_here.py")
    __import__("participation_here")
    settings = {"target_modules": ["q"], "total_step": 9}
    assert flexlora.FlexLoraConfig(importance="participation", **settings).importance == "participation"
    with pytest.raises(ValueError, match=r"`importance` must be one of .*entropy.*participation, not 'partisipation'"):
        flexlora.FlexLoraConfig(importance="partisipation", **settings)


NORMS = """
from flexlora.methods.base import Method

class Norms(Method):
    def wrap(self, model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("LayerNorm" in name or name.startswith(("pooler", "classifier", "bert.pooler")))
        return model

def build(fields, context):
    return Norms()
"""


def test_parameters_outside_the_head_count_as_the_adapters(mine):
    (mine / "own_methods").mkdir()
    (mine / "own_methods" / "norms.py").write_text(NORMS, encoding="utf-8")
    bert = tiny("bert")
    built = build_method(MethodSettings("norms", "own_methods.norms", {}), context("bert"))
    counted = built.parameters(built.wrap(bert))
    norms = 5 * 2 * 32  # of the embeddings, and two of each of two layers
    head = 32 * 32 + 32 + 2 * 32 + 2
    assert counted == {
        "adapter_active": norms,
        "adapter_allocated": norms,
        "head": head,
        "total": sum(parameter.numel() for parameter in bert.parameters()),
    }
