"""`adapter=DIR`: a run starts from the saved adapter of another run with the same method."""

import json
from pathlib import Path

import pytest
from runner_helpers import one_line

from flexlora.results.record import read_record


def folder_of(root: Path, tiny_bert: Path, method: str, variant: str = "test") -> Path:
    return root / "local" / "glue" / "cola" / tiny_bert.name / method / variant / "seed0"


@pytest.fixture(scope="module")
def finished(flexlora_run, arguments, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("first")
    result = flexlora_run("-m", *arguments, "method=lora,flexlora,linear,adalora", f"output_root={root}")
    assert result.returncode == 0, result.stderr
    return root


# One step at a learning rate of nothing: the evaluation is that of the adapter as it was loaded.
NOTHING = ["training.max_steps=1", "training.learning_rate=1e-12", "schedule=absolute", "variant=again"]


@pytest.mark.parametrize("method", ["lora", "flexlora", "linear"])
def test_a_run_starts_from_the_saved_adapter(finished, flexlora_run, arguments, tiny_bert, tmp_path, method):
    saved = folder_of(finished, tiny_bert, method)
    more = ["method.init_b=0", "method.max_rank=32"] if method == "flexlora" else []
    result = flexlora_run(
        *arguments, *NOTHING, *more, f"method={method}", f"adapter={saved / 'adapter'}", f"output_root={tmp_path}"
    )
    assert result.returncode == 0, result.stderr + result.stdout
    before = read_record(saved / "result.json").metrics["last"]
    after = read_record(folder_of(tmp_path, tiny_bert, method, "again") / "result.json").metrics["last"]
    assert after["eval_loss"]["validation"] == pytest.approx(before["eval_loss"]["validation"], abs=1e-6)
    assert after.get("ranks") == before.get("ranks")


def test_a_head_of_another_task_is_initialised_again(finished, flexlora_run, arguments, tiny_bert, tmp_path):
    saved = folder_of(finished, tiny_bert, "lora") / "adapter"
    result = flexlora_run(
        *arguments, *NOTHING, "method=lora", f"adapter={saved}", f"output_root={tmp_path}",
        "task.num_labels=3", "task.labels=['0','1','2']",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr + result.stdout
    assert "classifier.weight has another shape in the saved adapter and is initialised again" in result.stdout


@pytest.mark.parametrize(
    ("method", "theirs", "message"),
    [
        ("flexlora", "lora", "has a LORA adapter, but this method is FLEXLORA"),
        ("lora", "flexlora", "has a FLEXLORA adapter, but this method is LORA"),
        ("lora", "linear", "is not an adapter saved by PEFT: it has no adapter_config.json"),
        ("linear", "lora", "has no trained.safetensors: it is of another method"),
        ("bitfit", "linear", "is of another method or model: "),
        ("adalora", "adalora", "AdaLoRA cannot start from a saved adapter"),
    ],
)
def test_an_adapter_of_another_method_is_refused(
    finished, flexlora_run, arguments, tiny_bert, tmp_path, method, theirs, message
):
    saved = folder_of(finished, tiny_bert, theirs) / "adapter"
    result = flexlora_run(*arguments, f"method={method}", f"adapter={saved}", f"output_root={tmp_path}")
    assert result.returncode == 2
    assert message in one_line(result)
    assert one_line(result).startswith("adapter: ")


def test_a_mismatched_damaged_or_missing_adapter_is_refused(finished, flexlora_run, arguments, tiny_bert, tmp_path):
    saved = folder_of(finished, tiny_bert, "lora") / "adapter"
    fewer = flexlora_run(
        *arguments, "method=lora", f"adapter={saved}", f"output_root={tmp_path}", "method.target_modules=[query]"
    )
    assert fewer.returncode == 2
    assert "is of another model or other modules: " in one_line(fewer)

    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "adapter_config.json").write_text((saved / "adapter_config.json").read_text())
    (damaged / "adapter_model.safetensors").write_bytes(b"no tensors")
    broken = flexlora_run(*arguments, "method=lora", f"adapter={damaged}", f"output_root={tmp_path}", "variant=b")
    assert broken.returncode == 2
    assert f"adapter: cannot load {damaged}: " in one_line(broken)
    assert json.loads((saved / "adapter_config.json").read_text())["peft_type"] == "LORA"

    absent = flexlora_run(*arguments, "method=lora", "adapter=/nowhere", f"output_root={tmp_path}", "variant=c")
    assert absent.returncode == 2
    assert "adapter: there is no folder /nowhere" in one_line(absent)
