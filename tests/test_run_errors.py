"""Bad input through the installed command: one clear line, an exit code that is not 0, within seconds."""

import shutil
import time
from pathlib import Path

import pytest
from runner_helpers import one_line

BAD_SETTINGS = {
    "no task": ([], r"no task is given: task=NAME, one of glue/cola"),
    "unknown task": (["task=glue/colaa"], r"there is no task 'glue/colaa'. Did you mean glue/cola?"),
    "unknown method": (["task=glue/cola", "method=flexlra"], r"Did you mean flexlora? There are:"),
    "unknown model": (["task=glue/cola", "model=locl"], r"there is no model 'locl'. Did you mean local?"),
    "unknown key": (["task=glue/cola", "training.lr=1"], r"Did you mean training.learning_rate?"),
    "unknown group": (["task=glue/cola", "metod=lora"], r"there is no setting 'metod'. Did you mean method?"),
    "added key": (["task=glue/cola", "+training.foo=1"], r"there is no setting 'training.foo'."),
    "wrong type": (["task=glue/cola", "training.epochs=eight"], r"training.epochs=eight: Value 'eight' of type"),
    "wrong choice": (["task=glue/cola", "training.precision=fp8"], r"expected one of [fp32, bf16, fp16]"),
    "no key=value": (["task=glue/cola", "x y"], r"cannot read 'x y'"),
    "no model.path": (["task=glue/cola", "model=local", "task.data_dir={cola}"], r"model.path is not set"),
    "no such model": (["{run}", "model.path=nowhere"], r"there is no folder nowhere"),
    "no such data": (["task=glue/cola", "task.data_dir=nowhere"], r"there is no folder nowhere"),
    "no such PEFT field": (["{run}", "method=lora", "+method.use_rslra=true"], r"Did you mean method.use_rslora?"),
    "a PEFT field's type": (["{run}", "method=lora", "+method.rank_pattern=3"], r"method.rank_pattern: 3 is not"),
    "a refused value": (["{run}", "method=flexlora", "method.importance=size"], r"`importance` is 'size'"),
    "no event can fire": (["{run}", "method=flexlora", "schedule=absolute"], r"no rank event can fire"),
    "no such head": (
        ["{run}", "method=lora", "method.modules_to_save=[poolr]"],
        r"'poolr'. Did you mean pooler?",
    ),
    "nothing to train": (["{run}", "method=linear", "method.trainable=[bert]"], r"'bert' is no parameter's whole name"),
    "a choice of PEFT's": (["{run}", "method=lora", "method.bias=foo"], r"'foo' is not one of none, all, lora_only"),
    "a column": (["{run}", "task.tsv.label=9"], r"task.tsv: there is no column 9: without a header"),
    "a figure": (["{run}", "task.main_metric=accuracy"], r"no 'accuracy'. This task has matthews_correlation."),
    "labels": (["{run}", "task.num_labels=3"], r"task.num_labels is 3, task.labels has 2"),
    "a window": (["{run}", "method=flexlora", "method.deltaT=0"], r"method.deltaT must be at least 1, not 0"),
    "out of range": (["{run}", "training.batch_size=0"], r"training.batch_size must be at least 1, not 0"),
    "nothing to adapt": (["{run}", "method=lora", "method.target_modules=[nothing]"], r"method: "),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_a_bad_setting_is_one_line_and_not_exit_code_zero(flexlora_run, arguments, cola, tmp_path, case):
    given, message = BAD_SETTINGS[case]
    spelled = [argument.format(cola=cola) for argument in given if argument != "{run}"]
    run = arguments if "{run}" in given else []
    result = flexlora_run(*run, *spelled, f"output_root={tmp_path}")
    assert result.returncode == 2
    assert message in one_line(result)


def test_a_broken_line_of_data_is_named(flexlora_run, arguments, cola, tmp_path):
    broken = tmp_path / "CoLA"
    broken.mkdir()
    good = (cola / "CoLA" / "train.tsv").read_text()
    (broken / "train.tsv").write_text(good + "made\t7\t\tthe cat sees .\n")
    (broken / "dev.tsv").write_text(good)
    result = flexlora_run(*arguments, f"task.data_dir={tmp_path}", f"output_root={tmp_path / 'out'}")
    assert result.returncode == 2
    assert one_line(result).endswith("train.tsv, line 65: label '7' is none of 0, 1")


@pytest.mark.parametrize("offline", ["1", ""], ids=["HF_HUB_OFFLINE=1", "a hub that does not answer"])
def test_without_the_hub_it_says_in_seconds_what_to_set(flexlora_run, cola, tmp_path, offline):
    # Port 9 of this machine refuses at once; an address that never answers is cut off after four seconds.
    nowhere = {"HF_HUB_OFFLINE": offline, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "cache")}
    for given, hint in (([], "task.data_dir=DIR"), ([f"task.data_dir={cola}"], "model=local model.path=DIR")):
        began = time.monotonic()
        result = flexlora_run(
            "task=glue/cola", *given, f"output_root={tmp_path}", **nowhere, HTTPS_PROXY="", https_proxy=""
        )
        assert result.returncode == 2
        assert "cannot be reached" in one_line(result)
        assert hint in one_line(result)
        assert time.monotonic() - began < 60


def test_a_traceback_is_shown_where_it_is_asked_for(flexlora_run):
    result = flexlora_run("task=glue/cola", "+foo=1", HYDRA_FULL_ERROR="1")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


@pytest.mark.parametrize(
    ("missing", "message"),
    [("tokenizer", "has no tokenizer: save it beside the model"), ("weights", "Error while deserializing header")],
)
def test_a_folder_that_lacks_a_part_of_the_model_is_refused(
    flexlora_run, arguments, tiny_bert, tmp_path, missing, message
):
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    if missing == "tokenizer":
        for file in [*folder.glob("*token*"), *folder.glob("vocab*")]:
            file.unlink()
    else:
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:2000])
    result = flexlora_run(*arguments, f"model.path={folder}", f"output_root={tmp_path / 'out'}")
    assert result.returncode == 2
    assert message in one_line(result)
