"""A language model that cannot fit is refused with the numbers, before its weights are loaded."""

import pytest
from commonsense_helpers import write_llama, write_rows
from compose_helpers import settings_of_run

from flexlora.errors import UserError
from flexlora.models import causal_lm, load_backbone, sketch
from flexlora.settings import Quantization
from flexlora.tasks import load_task
from flexlora.training import memory, memory_check


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    llama, data = write_llama(folder / "llama"), write_rows(folder / "data")
    task = ["task=commonsense170k", "task.test_sets=[boolq,winogrande]", f"task.data_dir={data}"]
    return settings_of_run(*task, "method=lora", "model=local", f"model.path={llama}")


def free(monkeypatch, count: int) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: (count, 2 * count))


def test_a_sketch_is_the_model_without_its_weights(run):
    drawn, loaded = sketch(run.model, None), load_backbone(run.model, None)
    assert drawn is not None
    assert all(parameter.is_meta for parameter in drawn.model.parameters())
    assert {n: p.shape for n, p in drawn.model.named_parameters()} == {
        n: p.shape for n, p in loaded.model.named_parameters()
    }
    held = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    assert drawn.weight_bytes() == (held, held)


def test_packed_weights_are_counted_as_they_will_be_held(run):
    drawn = sketch(run.model, None)
    assert isinstance(drawn, causal_lm.CausalLm)
    drawn.quantization = Quantization["8bit"]
    whole, packed = drawn.weight_bytes()
    linears = [m for n, m in drawn.model.named_modules() if hasattr(m, "in_features") and not n.endswith("lm_head")]
    per_weight = linears[0].weight.element_size()
    assert whole - packed == sum(m.weight.numel() for m in linears) * (per_weight - 1)


def test_weights_above_the_free_memory_are_refused_and_not_loaded(run, monkeypatch):
    free(monkeypatch, 10_000)
    monkeypatch.setattr(memory_check, "GIB", 1024)
    task = load_task(run.task)
    with pytest.raises(UserError, match=r"does not fit: its weights take .* GiB in \w+, and 9.8 GiB of cpu is free"):
        memory_check.refuse_what_cannot_fit(run, task, "cpu")


def test_a_step_above_the_free_memory_is_refused_with_what_would_help(run, monkeypatch):
    drawn = sketch(run.model, None)
    assert drawn is not None
    monkeypatch.setattr(memory_check, "WORTH_A_LOOK", 0)
    free(monkeypatch, drawn.weight_bytes()[0] + 1000)
    with pytest.raises(UserError, match=r"takes .* of it the weights in .*: training\.(eval_)?batch_size below"):
        memory_check.refuse_what_cannot_fit(run, load_task(run.task), "cpu")
    free(monkeypatch, 2**40)
    memory_check.refuse_what_cannot_fit(run, load_task(run.task), "cpu")
