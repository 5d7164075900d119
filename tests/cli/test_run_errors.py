"""Bad input through the installed command: one clear line, an exit code that is not 0, within seconds."""

import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from runner_helpers import one_line

BAD_SETTINGS = {
    "no task": ([], r"no task is given: task=NAME, one of commonsense170k, csv, glue/cola"),
    "unknown task": (["task=glue/colaa"], r"there is no task 'glue/colaa'. Did you mean glue/cola?"),
    "unknown method": (["task=glue/cola", "method=flexlra"], r"Did you mean flexlora? There are:"),
    "unknown model": (["task=glue/cola", "model=locl"], r"there is no model 'locl'. Did you mean local?"),
    "unknown key": (["task=glue/cola", "training.lr=1"], r"Did you mean training.learning_rate?"),
    "unknown group": (["task=glue/cola", "metod=lora"], r"there is no setting 'metod'. Did you mean method?"),
    "added key": (["task=glue/cola", "+training.foo=1"], r"there is no setting 'training.foo'."),
    "wrong type": (["task=glue/cola", "training.epochs=eight"], r"training.epochs=eight: Value 'eight' of type"),
    "wrong choice": (["task=glue/cola", "training.precision=fp8"], r"expected one of [fp32, bf16, fp16]"),
    "no key=value": (["task=glue/cola", "x y"], r"cannot read 'x y'"),
    "no quotes": (
        ["task=glue/cola", "variant=été"],
        "cannot read 'variant=été': settings are written key=value; "
        """with its own quotes: 'variant="été"'""",
    ),
    "null for a group": (["task=glue/cola", "method=null"], r"take the name of a choice, not null or a number"),
    "null": (["task=glue/cola", "seed=null"], r"seed=null: it cannot be null"),
    "no list": (["task=glue/cola", "trackers=wandb"], r"trackers=wandb: a list is written in brackets, [a,b]"),
    "a sweep without -m": (["task=glue/cola", "seed=0,1"], r"'seed=0,1' is several values: -m runs each of them"),
    "a key of no task": (["-m", "task=glue/cola,glue/rte", "task.max_rows=8"], r"Did you mean task.max_eval_rows?"),
    "a field of some methods": (["-m", "task=glue/cola", "method=lora,bitfit", "method.bias=all"], r"methods with ++."),
    "an empty sweep": (["-m", "task=glob(glue/*)"], r"nothing to run: a list of the sweep is empty"),
    "one bad run": (["-m", "task=glue/cola", "method=lora,lara"], r"there is no method 'lara'. Did you mean lora?"),
    "an unset variable": (["task=glue/cola", "adapter="], r"adapter is empty: give a folder, or leave the setting out"),
    "a path for a name": (["task=glue/cola", "task.name=../x"], r"task.name becomes folder names"),
    "no room for a sweep": (
        ["-m", "task=glue/cola", "seed=0,1", "hydra.sweep.dir=/proc/x"],
        r"cannot write /proc/x: No such file or directory. Set output_root=DIR.",
    ),
    "no model.path": (["task=glue/cola", "model=local", "task.data_dir={cola}"], r"model.path is not set"),
    "no such model": (["{run}", "model.path=nowhere"], r"there is no folder nowhere"),
    "no such kind of model": (["task=glue/cola", "model.kind=llm"], r"there is no model.kind 'llm'. There are:"),
    "no such data": (["task=glue/cola", "task.data_dir=nowhere"], r"there is no folder nowhere"),
    "no such PEFT field": (["{run}", "method=lora", "+method.use_rslra=true"], r"Did you mean method.use_rslora?"),
    "a PEFT field's type": (["{run}", "method=lora", "+method.rank_pattern=3"], r"method.rank_pattern: 3 is not"),
    "a refused value": (["{run}", "method=flexlora", "method.importance=size"], r"method.importance must be one of "),
    "no event can fire": (["{run}", "method=flexlora", "schedule=absolute"], r"no rank event is possible"),
    "no such head": (
        ["{run}", "method=lora", "method.modules_to_save=[poolr]"],
        r"'poolr'. Did you mean pooler?",
    ),
    "nothing to train": (
        ["{run}", "method=linear", "method.trainable=[bert]"],
        r"'bert' does not match the full name of any parameter",
    ),
    "a choice of PEFT's": (["{run}", "method=lora", "method.bias=foo"], r"'foo' is not one of none, all, lora_only"),
    "a column": (["{run}", "task.tsv.label=9"], r"task.tsv: there is no column 9: without a header"),
    "a figure": (["{run}", "task.main_metric=accuracy"], r"no metric 'accuracy'. There are: matthews_correlation."),
    "labels": (["{run}", "task.num_labels=3"], r"task.num_labels is 3, but task.labels has 2 labels"),
    "a window": (["{run}", "method=flexlora", "method.deltaT=0"], r"method.deltaT must be at least 1, not 0"),
    "out of range": (["{run}", "training.batch_size=0"], r"training.batch_size must be at least 1, not 0"),
    "nothing to adapt": (["{run}", "method=lora", "method.target_modules=[nothing]"], r"method: "),
    "no regular expression": (
        ["{run}", "method=lora", "method.target_modules='(['"],
        r"method: unterminated character",
    ),
    "nothing trains": (
        ["{run}", "method=lora", "+method.inference_mode=true"],
        r"method: these settings train no parameter",
    ),
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
    assert one_line(result).endswith("train.tsv, line 65: label '7' is not one of 0, 1")


BAD_YAML = {
    "no YAML": ("name: [\n", r"mine.yaml, line 2: not valid YAML: expected the node content"),
    "a list": ("- a\n", r"the YAML of this task lacks 'name' or 'family', which those in conf/task have"),
    "a key": (
        "defaults:\n  - /schema/task/glue@_here_\n  - _self_\nname: mine\nlenght: 3\n",
        r"task/mine.yaml: there is no setting 'task.lenght'. Did you mean task.max_length?",
    ),
    "a type": (
        "defaults:\n  - /schema/task/glue@_here_\n  - _self_\nname: mine\nmax_length: long\n",
        r"task/mine.yaml: task.max_length: Value 'long' of type 'str' could not be converted to Integer",
    ),
    "no such schema": (
        "defaults:\n  - /schema/task/nope@_here_\n",
        r"In 'task/mine': Could not load 'schema/task/nope'",
    ),
}


@pytest.mark.parametrize("case", BAD_YAML)
def test_a_yaml_of_ones_own_that_is_broken_is_one_line(flexlora_run, tmp_path, case):
    text, message = BAD_YAML[case]
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "mine.yaml").write_text(text)
    result = flexlora_run("--config-dir", str(tmp_path), "task=mine", f"output_root={tmp_path}")
    assert result.returncode == 2
    assert message in one_line(result)


def test_every_run_of_a_sweep_says_what_is_wrong_with_its_data(flexlora_run, arguments, cola, tmp_path):
    """Eight folders, eight reasons, one process: no run keeps the next from being tried."""
    train, dev = ((cola / "CoLA" / name).read_text() for name in ("train.tsv", "dev.tsv"))
    folders: dict[str, tuple[dict[str, str], str]] = {
        "split": ({"train.tsv": train}, "there is no file {}/dev.tsv: the task needs train.tsv and dev.tsv"),
        "line": ({"train.tsv": f"{train}made\t1\tno star .\n", "dev.tsv": dev},
                 "{}/train.tsv, line 65: 3 tab-separated columns where 4 are expected"),
        "label": ({"train.tsv": train, "dev.tsv": f"made\t2\t\ta .\n{dev}"},
                  "{}/dev.tsv, line 1: label '2' is not one of 0, 1"),
        "other split": ({"train.csv": "sentence,label\na,1\n"}, "{} has no file for split 'validation'"),
        "column": ({"train.csv": "text,label\na,1\n"}, "{}/train.csv has no column 'sentence'. It has: text, label"),
        "row": ({"train.jsonl": '{"sentence": "a", "label": 3}\n'}, "{}/train.jsonl, row 1: label 3 is not between 0"),
        "json": ({"train.jsonl": '{"sentence": "a", "label": 1}\n{"sente'}, "cannot read {}/train.jsonl: line 2: "),
        "rows": ({"train.csv": ""}, "{}/train.csv has no rows"),
    }  # fmt: skip
    for name, (files, _) in folders.items():
        (tmp_path / name).mkdir()
        for file, content in files.items():
            (tmp_path / name / file).write_text(content)
    swept = ",".join(f"'{tmp_path / name}'" for name in folders)
    result = flexlora_run(*arguments, "-m", "method=lora", f"task.data_dir={swept}", f"output_root={tmp_path / 'out'}")
    assert result.returncode == 2, result.stdout + result.stderr
    assert "\n8 runs: 8 refused\n" in result.stdout
    lines = result.stderr.strip().splitlines()
    assert len(lines) == len(folders), result.stderr
    for line, (name, (_, message)) in zip(lines, folders.items(), strict=True):
        assert line.startswith("flexlora-run: ")
        assert message.format(tmp_path / name) in line


# Port 9 of this machine refuses at once; an address that never answers is cut off after four seconds.
NO_ANSWER = {"HF_HUB_OFFLINE": "", "HF_ENDPOINT": "http://127.0.0.1:9", "HTTPS_PROXY": "", "https_proxy": ""}


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({}, id="HF_HUB_OFFLINE=1"),  # as every command of the tests; its cache of the hub is empty
        pytest.param(NO_ANSWER, id="a hub that does not answer", marks=pytest.mark.slow),
    ],
)
def test_without_the_hub_it_says_what_to_set(flexlora_run, cola, tmp_path, variables):
    """For the data in the first run and for the model in the second."""
    swept = f"task.data_dir=null,{cola}"
    result = flexlora_run("-m", "task=glue/cola", swept, f"output_root={tmp_path}", **variables)
    assert result.returncode == 2
    lines = result.stderr.strip().splitlines()
    for line, hint in zip(lines, ("task.data_dir=DIR", "model=local model.path=DIR"), strict=True):
        assert line.startswith("flexlora-run: ")
        assert "cannot be reached" in line
        assert hint in line


def test_version_is_our_own(flexlora_run):
    assert flexlora_run("--version").stdout == f"flexlora-run {version('flexlora')}\n"


def ascii_terminal() -> None:
    """What PYTHONIOENCODING=ascii does at the start of Python."""
    sys.stdout.reconfigure(encoding="ascii", errors="strict")


NOWHERE = {"HOME": "/proc/none", "FLEXLORA_CACHE": "/proc/none"}


@pytest.mark.parametrize(
    "start",
    [
        pytest.param({"fault": ascii_terminal, **NOWHERE}, id="forked"),
        pytest.param(
            {"fresh": True, "PYTHONIOENCODING": "ascii", "HF_HOME": "/proc/none", **NOWHERE},
            id="fresh",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_terminal_that_lacks_letters_is_no_reason_to_fail(flexlora_run, arguments, tmp_path, start):
    """And nothing is needed from a home or a cache that cannot be written."""
    result = flexlora_run(*arguments, "method=linear", "training.max_steps=2", f"output_root={tmp_path}", **start)
    assert result.returncode == 0, result.stderr
    assert "glue/cola \\xb7 linear" in result.stdout
    assert "tokens are not cached: cannot write in /proc/none/tokens" in result.stdout


def test_a_traceback_is_shown_where_it_is_asked_for(flexlora_run):
    result = flexlora_run("task=glue/cola", "+foo=1", HYDRA_FULL_ERROR="1")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("tokenizer", "has no tokenizer: save it beside the model"),
        ("weights", "model.safetensors has no valid header"),
        ("agreement", "contradicts its config.json: bert."),
    ],
)
def test_a_folder_that_lacks_a_part_of_the_model_is_refused(
    flexlora_run, arguments, tiny_bert, tmp_path, missing, message
):
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    if missing == "tokenizer":
        for file in [*folder.glob("*token*"), *folder.glob("vocab*")]:
            file.unlink()
    elif missing == "agreement":
        config = folder / "config.json"
        config.write_text(config.read_text().replace('"hidden_size": 32', '"hidden_size": 64'))
    else:
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:2000])
    result = flexlora_run(*arguments, f"model.path={folder}", f"output_root={tmp_path / 'out'}")
    assert result.returncode == 2
    assert message in one_line(result)
