"""What the fuzz tests have found, each as a plain case: once a traceback, a hang, or nonsense that was taken."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doctor_helpers import check, command, examine
from glue_helpers import RTE, settings_of, write, write_download
from transformers import AutoTokenizer

from flexlora.errors import UserError, printable
from flexlora.hub import is_cached
from flexlora.methods import build_method
from flexlora.methods.base import PlannedEvents, RunContext
from flexlora.models import Backbone, load_backbone
from flexlora.results.collect import collect
from flexlora.results.folder import RunFolder, checkpoint_folders, variant_name
from flexlora.results.record import Ending
from flexlora.settings import Dtype, MethodSettings, ModelSettings, Schedule
from flexlora.tasks import load_task
from flexlora.tasks.tokens import TokenCache

pytestmark = pytest.mark.usefixtures("hydra_in_this_process")

LORA = MethodSettings("lora", "peft", {"peft_type": "LORA", "r": 2})
CONTEXT = RunContext(total_steps=10, schedule=Schedule.absolute, paper_steps=None, seed=0, target_modules=".*")

SETTINGS = {
    "a line break in a folder's name": (["variant='a\nb'"], "variant becomes a folder name; 'a\\nb' is not a valid"),
    "a name longer than a file system takes": ([f"variant={'x' * 300}"], "is not a valid folder name"),
    "a control character": (["task.hub.name='\x85'"], "task.hub.name contains a line break, a control character or"),
    "bytes that are no UTF-8": (["task.hub.name='\udcff'"], "or bytes that are not UTF-8: \\udcff"),
    "the same, overridden again": (["task.hub.name='\udcff'", "task.hub.name=cola"], None),
    "an error of several lines": (["adapter=\r"], "cannot read 'adapter=\\r'"),
    "a path that is too long": ([f"adapter={'x' * 300}"], "adapter is too long for a path: xxx"),
    "a user without a home": (["output_root='~no-such-user/x'"], "has no home folder on this machine"),
    "a number of 400 digits": ([f"training.epochs={'9' * 400}"], "training.epochs must be between"),
    "a number for a group, in a list": (["benchmark=[a,24]"], "take the name of a choice, not null or a number"),
    "a module that begins with a dot": (["method.kind=.x"], "method.kind: '.x' is not the name of a Python module"),
    "a rank that fills any memory": (["method=lora", "method.r=100000000"], "method.r must be between 0 and 65536"),
    "a head that fills any memory": (["task.num_labels=2147483647"], "task.num_labels must be between 1 and 65536"),
    "lora_alpha nan": (["method=lora", "method.lora_alpha=nan"], "method.lora_alpha must be a finite number, not nan"),
    "lora_alpha inf": (["method=lora", "method.lora_alpha=inf"], "method.lora_alpha must be a finite number, not inf"),
    "lora_alpha below 0": (["method=lora", "method.lora_alpha=-3"], "lora_alpha must be a positive number, not -3"),
    "lora_dropout nan": (["method=lora", "method.lora_dropout=nan"], "method.lora_dropout must be a finite number"),
    "lora_dropout 1": (["method=lora", "method.lora_dropout=1"], "lora_dropout must be a probability below 1, not 1.0"),
    "a dropout of one of PEFT's tuners": (["method=hira", "method.hira_dropout=-1e9"], "hira_dropout must be a prob"),
    "an unknown key of a nested configuration": (
        ["method=lora", "++method.kasa_config={0: 1}"],
        "there is no setting 'method.kasa_config.0': KasaConfig has no such field.",
    ),
    "a mapping for PEFT's type": (["method=lora", "method.peft_type={0: LORA}"], "there is no method.peft_type"),
    "rank 0": (["method=lora", "method.r=0"], "method.r must be a whole number of at least 1, not 0"),
    "a negative rank of one module": (["method=lora", "++method.rank_pattern={query:-3}"], "query must be a whole"),
    "a word for a rank": (["method=lora", "++method.rank_pattern={query:x}"], "query must be a whole"),
    "a list of numbers for names": (["method=lora", "method.modules_to_save=[0.5]"], "modules_to_save: [0.5] is"),
    "a TypeError of PEFT's": (["method=lora", "++method.use_bdlora=true"], "method: `BdLoraConfig` must be"),
    "no column at all": (["task.tsv.width=0"], "task.tsv.width must be at least 1, not 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_were_no_line(case: str) -> None:
    typed, message = SETTINGS[case]
    ending, stderr = command(check, ["task=glue/cola", *typed])
    if message is None:
        assert ending.status == "ready", stderr
        return
    assert ending.status == "refused"
    assert message in stderr, stderr
    assert len(stderr.splitlines()) == 1


def test_a_score_of_classes_for_a_number(arguments: list[str], tmp_path: Path) -> None:
    """It failed at the first evaluation, after an epoch of training."""
    typed = ["task.num_labels=1", "task.labels=[]", f"output_root={tmp_path}"]
    ending, _ = command(examine, [*arguments, "method=lora", *typed])
    assert ending == Ending("not ready", "task.metric: matthews_correlation does not work with task.num_labels=1")


def test_f1_of_three_classes(tmp_path: Path) -> None:
    labels = {"num_labels": 3, "labels": ["0", "1", "2"], "metric": "accuracy_f1", "main_metric": "f1"}
    settings = settings_of("cola", data_dir=str(write_download(tmp_path)), **labels)
    with pytest.raises(UserError, match=r"^task\.metric: accuracy_f1 does not work with task\.num_labels=3$"):
        load_task(settings)


@pytest.mark.parametrize("method", ["flexlora", "flexlora_released", "adalora"])
def test_two_billion_steps_are_planned_at_once(method: str, arguments: list[str], tmp_path: Path) -> None:
    """The doctor listed all their events first, until memory ended."""
    long = ["training.max_steps=2000000000", "schedule=absolute", "method.deltaT=1", f"output_root={tmp_path}"]
    ending, _ = command(examine, [*arguments, f"method={method}", *long])
    assert ending.status in {"ready", "not ready"}


@pytest.mark.parametrize(("tinit", "tfinal", "interval"), [(0, 1, 1), (3, 4, 5), (5, 4, 5), (2, 16, 7), (0, 3, 30)])
def test_adaloras_planned_events_are_those_that_peft_sets_a_mask_at(
    tiny_bert: Path, tinit: int, tfinal: int, interval: int
) -> None:
    settings = ModelSettings(None, "sequence_classifier", "local", str(tiny_bert), None, True, Dtype.float32)
    adalora = MethodSettings("adalora", "adalora", {"peft_type": "ADALORA", "init_r": 4, "target_r": 2})
    windows = {"tinit": tinit, "tfinal": tfinal, "deltaT": interval}
    context = replace(CONTEXT, total_steps=20, target_modules=r".*\.query")
    method = build_method(adalora.with_fields(**windows), context)
    method.wrap(load_backbone(settings, 2).model)
    schedule = method._adalora.rankallocator.budget_schedule  # type: ignore[attr-defined]
    events = [(step, schedule(step)[0]) for step in range(1, 20 - tfinal) if schedule(step)[1]]
    events.append((20 - tfinal, method._adalora.rankallocator.target_bgt))  # type: ignore[attr-defined]
    every = events[1][0] - events[0][0] if len(events) > 1 else None
    assert method.planned_events() == PlannedEvents(len(events), events[0], events[-1], every)


def test_a_batch_that_is_made_up_takes_no_memory() -> None:
    """Where there is no data the doctor makes one of the size that is asked for."""
    batch = Backbone(None, None, "", [], None, None).made_batch(2_000_000_000, 1_000_000)
    assert all(tensor.is_meta for tensor in batch.values())


def test_a_name_that_no_repository_has_is_not_cached() -> None:
    assert not is_cached("a b", None)


def test_a_line_is_one_line() -> None:
    assert printable("a\nb\x1b[2J\u2028é 🙂\udcff") == "a\\nb\\x1b[2J\\u2028é 🙂\\udcff"
    assert str(UserError("a\nb")) == "a\\nb"
    assert variant_name(["a='\udcff'"]).startswith("a-")


# --- files --------------------------------------------------------------------------------------------------------


def test_an_empty_tsv_file_is_called_empty(tmp_path: Path) -> None:
    """It was refused for the columns of a file without a header."""
    folder = write_download(tmp_path) / "RTE"
    (folder / "dev.tsv").write_bytes(b"")
    with pytest.raises(UserError, match=r"dev\.tsv has no rows$"):
        load_task(settings_of("rte", data_dir=str(folder)))


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    folder = write_download(tmp_path) / "RTE"
    (folder / "dev.tsv").write_text("index\tsentence1\tsentence1\tsentence2\tlabel\n0\ta\tb\tc\tentailment\n")
    with pytest.raises(UserError, match=r"dev\.tsv, line 1: there is more than one column 'sentence1'$"):
        load_task(settings_of("rte", data_dir=str(folder)))


COLUMN_FILES = {
    "two columns of one name": ("train.csv", b"sentence1,sentence1,sentence2,label\na,b,c,1\n", "two columns have the"),
    "two labels in a row": (
        "train.jsonl", b'{"sentence1": "a", "sentence2": "b", "label": 1, "label": 0}\n', "a key more than once",
    ),
    "half a letter": (
        "train.jsonl", b'{"sentence1": "a\\ud800", "sentence2": "b", "label": 1}\n', "sentence1 contains half of a",
    ),
    "lists in lists": ("train.json", b"[" * 100_000, "cannot read .*train.json: maximum recursion depth"),
    "numbers of 5,000 digits": ("train.json", b"[" + b"9" * 5000 + b"]", "cannot read .*train.json: Exceeds the limit"),
}  # fmt: skip


@pytest.mark.parametrize("case", COLUMN_FILES)
def test_files_of_columns_that_were_no_line(case: str, tmp_path: Path) -> None:
    name, content, message = COLUMN_FILES[case]
    (tmp_path / name).write_bytes(content)
    write(tmp_path / "validation.json", RTE)
    with pytest.raises(UserError, match=message):
        load_task(settings_of("rte", data_dir=str(tmp_path)))


def test_an_error_of_pyarrows_that_is_no_value_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet

    def refuse(*_: object) -> None:
        raise pyarrow.lib.ArrowNotImplementedError("Integers with more than 64 bits not implemented")

    write(tmp_path / "train.parquet", RTE)
    write(tmp_path / "validation.parquet", RTE)
    monkeypatch.setattr(pyarrow.parquet, "read_table", refuse)
    with pytest.raises(UserError, match=r"cannot read .*train\.parquet: Integers with more than 64 bits"):
        load_task(settings_of("rte", data_dir=str(tmp_path)))


def test_the_tokens_of_other_texts_under_this_name_are_not_believed(tiny_bert: Path, tmp_path: Path) -> None:
    """Two files of as many rows, swapped: each is whole."""
    cache = TokenCache(tmp_path, AutoTokenizer.from_pretrained(tiny_bert))
    some, others = (["the cat sees ."],), (["the dog ."],)
    expected = cache.tokens(some, 64).columns["input_ids"].copy()
    (file,) = tmp_path.iterdir()
    cache.tokens(others, 64)
    (other,) = set(tmp_path.iterdir()) - {file}
    shutil.copyfile(other, file)
    assert np.array_equal(cache.tokens(some, 64).columns["input_ids"], expected)


def test_a_folder_beside_the_checkpoints_is_none(tmp_path: Path) -> None:
    """As a file manager leaves them."""
    for name in ("step-000000009", "step-000000009 (copy)", "step-"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert list(checkpoint_folders(tmp_path)) == [9]


@pytest.mark.parametrize("content", ["seed: &a [*a]", "seed: ${", "seed: " + "[" * 5000])
def test_a_config_that_no_reader_takes(content: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-000000007").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"config\.yaml .*move the folder away, or give variant=NAME"):
        RunFolder(tmp_path, {}).can_resume()
    assert collect(tmp_path).runs == []


def test_a_record_of_lists_in_lists(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"status": ' + "[" * 100_000)
    with pytest.raises(UserError, match="is not the record of a run: maximum recursion depth"):
        RunFolder(tmp_path, {}).is_finished()
    assert len(collect(tmp_path).broken) == 1


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "an error of transformers' that is no value error": ({"dtype": "Dloat32"}, "cannot load"),
    "fewer layers than weights": (
        {"num_hidden_layers": 1},
        r"contradicts its config\.json: the weights have .*layer\.1",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_backbones_config(case: str, tiny_bert: Path, tmp_path: Path) -> None:
    change, message = CONFIGS[case]
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    settings = ModelSettings(None, "sequence_classifier", "local", str(folder), None, True, Dtype.float32)
    with pytest.raises(UserError, match=message):
        load_backbone(settings, 2)


def test_a_task_type_other_than_the_models_is_refused_before_peft_wraps_the_model() -> None:
    context = replace(CONTEXT, task_type="SEQ_CLS")
    with pytest.raises(
        UserError, match=r"^method\.task_type must be the model's SEQ_CLS, not CAUSAL_LM: leave it out$"
    ):
        build_method(LORA.with_fields(task_type="CAUSAL_LM"), context)
    build_method(LORA.with_fields(task_type="SEQ_CLS"), context)
    build_method(LORA, context)


def test_a_negative_rank_is_refused_before_a_model_is_loaded() -> None:
    with pytest.raises(UserError, match=r"^method\.r must be a whole number of at least 1, not -1$"):
        build_method(LORA.with_fields(r=-1), CONTEXT)
