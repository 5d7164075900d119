"""Commonsense170K through the installed command: what a run records, what it refuses, and LLaMA3-8B's exact counts."""

import copy
import importlib.util
import json
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from commonsense_helpers import write_llama, write_rows
from compose_helpers import settings_of_run
from joint_run_helpers import start
from marks import slow_but
from runner_helpers import one_line

from flexlora.models import Backbone, outline
from flexlora.report.published import read_published
from flexlora.results.record import read_record
from flexlora.training.plan import make_method


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def short(llama, data):
    """A run of a few steps; method and output_root are a test's own."""
    return [
        "task=commonsense170k",
        "task.test_sets=[boolq,winogrande]",
        "model=local",
        f"model.path={llama}",
        f"task.data_dir={data}",
        "training.precision=fp32",
        "training.max_steps=6",
        "training.batch_size=8",
        "training.warmup_steps=1",
        "variant=test",
    ]


def record_of(root: Path, method: str):
    (file,) = root.glob(f"local/commonsense170k/*/{method}/test/seed0/result.json")
    return read_record(file)


def test_a_run_has_every_sets_accuracy_and_what_could_not_be_read(flexlora_run, short, tmp_path):
    options = ["training.gradient_accumulation=2", "training.gradient_checkpointing=true", "task.max_new_tokens=8"]
    result = flexlora_run(*short, "method=flexlora", *options, f"output_root={tmp_path}")
    assert result.returncode == 0, result.stderr
    record = record_of(tmp_path, "flexlora")
    last = record.metrics["last"]
    figures = {"boolq_accuracy", "boolq_unparsed", "winogrande_accuracy", "winogrande_unparsed", "average"}
    assert figures <= last.keys()
    assert last["average"] == pytest.approx((last["boolq_accuracy"] + last["winogrande_accuracy"]) / 2)
    assert record.main_metric == "average"
    assert record.samples == {"train": 96, "evaluation": {"boolq": 12, "winogrande": 12}}
    assert len(record.history) == 1  # at the end only
    assert record.rank_events["count"] > 0
    assert record.parameters["head"] == 0
    assert record.tokens["padded"] >= record.tokens["real"] > 0


def test_likelihood_and_a_loss_of_the_answer_alone_train_and_name_their_figures(flexlora_run, short, tmp_path):
    options = ["task.evaluation_mode=likelihood", "task.train_on_inputs=false", "task.train_sets=[boolq]"]
    options += ["training.learning_rate=1e-2", "training.max_steps=24"]
    result = flexlora_run(*short, "method=lora", *options, f"output_root={tmp_path}")
    assert result.returncode == 0, result.stderr
    record = record_of(tmp_path, "lora")
    assert {"boolq_likelihood_accuracy", "likelihood_average"} <= record.metrics["last"].keys()
    assert "average" not in record.metrics["last"]
    rows = [json.loads(line) for line in next(tmp_path.rglob("metrics.jsonl")).read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_after_training_on_real_rows_both_evaluations_give_their_figures(flexlora_run, shared, tmp_path):
    """The protocol's beams and the options' likelihoods, with a small LLaMA that knows little but stories."""
    rows = shared / "data" / "commonsense"
    if not rows.is_dir():
        pytest.skip("no commonsense questions among the shared data")
    words = [
        "task=commonsense170k",
        "model=local",
        f"model.path={shared / 'models' / 'stories260k'}",
        "method=flexlora",
    ]
    words += [f"task.data_dir={rows}", "task.train_sets=[boolq,ARC-Easy]", "task.test_sets=[boolq,openbookqa]"]
    words += ["task.max_train_rows=200", "task.max_eval_rows=4", "training.max_steps=12", "training.batch_size=4"]
    modes = "task.evaluation_mode=protocol,likelihood"
    result = flexlora_run("-m", *words, modes, "training.precision=fp32", f"output_root={tmp_path}")
    assert result.returncode == 0, result.stderr
    records = [read_record(file) for file in tmp_path.rglob("result.json")]
    last = {record.config["task"]["evaluation_mode"]: record.metrics["last"] for record in records}
    for mode, prefix in (("protocol", ""), ("likelihood", "likelihood_")):
        figures = [last[mode][f"{name}_{prefix}accuracy"] for name in ("boolq", "openbookqa")]
        assert all(0 <= figure <= 1 for figure in figures)
        assert last[mode][f"{prefix}average"] == pytest.approx(sum(figures) / 2)
    # A text may have none of the options; of a ranking one always comes first.
    assert {name for name in last["protocol"] if name.endswith("unparsed")} == {"boolq_unparsed", "openbookqa_unparsed"}
    assert not any(name.endswith("unparsed") for name in last["likelihood"])


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_a_base_packed_in_8_bits_trains_a_float32_adapter(flexlora_run, short, tmp_path):
    from safetensors.torch import load_file

    options = ["model.quantization=8bit", "task.evaluation_mode=fast", "task.max_eval_rows=4"]
    result = flexlora_run(*short, "method=flexlora", *options, f"output_root={tmp_path}")
    assert result.returncode == 0, result.stderr
    record = record_of(tmp_path, "flexlora")
    assert record.status == "done"
    assert record.config["model"]["quantization"] == "8bit"
    (file,) = tmp_path.rglob("adapter_model.safetensors")
    assert {tensor.dtype for tensor in load_file(file).values() if tensor.is_floating_point()} == {torch.float32}


REFUSED = {
    "nothing to train": (["method=linear"], "this method trains a fresh head, but this model has none: choose"),
    "no biases": (["method=bitfit"], "method.trainable: '.*\\.bias' does not match the full name of any parameter"),
    "no such set": (["task.test_sets=[piqa]"], "task.data_dir: neither "),
    "no sets": (["task.test_sets=[]"], "task.test_sets is an empty list: name one or more of boolq, piqa"),
    "no such mode": (["task.evaluation_mode=slow"], "task.evaluation_mode=slow: Invalid value"),
    "no such packing": (
        ["model.quantization=2bit"],
        "model.quantization=2bit: Invalid value '2bit', expected one of [8bit, 4bit]",
    ),
    "half a beam": (["task.num_beams=0"], "task.num_beams must be at least 1, not 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_one_line(flexlora_run, short, tmp_path, case):
    options, message = REFUSED[case]
    result = flexlora_run(*short, "training.learning_rate=1e-3", *options, f"output_root={tmp_path}")
    assert result.returncode == 2
    assert one_line(result).startswith(message)


def test_a_broken_row_is_one_line_with_file_and_row(flexlora_run, short, data, tmp_path):
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    file = broken / "dataset" / "boolq" / "test.json"
    rows = json.loads(file.read_text())
    rows[4]["answer"] = "maybe"
    file.write_text(json.dumps(rows), encoding="utf-8")
    result = flexlora_run(*short, "method=lora", f"task.data_dir={broken}", f"output_root={tmp_path}")
    assert result.returncode == 2
    assert one_line(result) == f"{file}, row 5: answer 'maybe' is not one of true, false"


# Per unit of rank 1,769,472 parameters in 160 linears; a direction of FlexLoRA's has its λ beside them.
COUNTS = {
    "lora": 14_155_776,
    "flexlora": 14_157_056,
    "adalora": 21_235_584,  # as it starts
    "adalora method.init_r=32 method.target_r=21": 56_628_224,
    "flexlora method.r=12": 21_235_584,
    "vera": 827_392,
    "randlora": 52_887_552,
    "sharelora": 6_537_216,
    "houlsby": 32 * 2 * (2 * 256 * 4096 + 256 + 4096),
    "pfeiffer": 32 * (2 * 256 * 4096 + 256 + 4096),
    "full": 8_030_261_248,
}
AT_RANK_32 = {
    **dict.fromkeys(
        ("lora", "rslora", "pissa", "milora", "hira", "liera", "lora_ga", "nora_plus", "prec_lora"), 56_623_104
    ),
    **dict.fromkeys(("flexlora", "flexlora_released", "sora", "mlae"), 56_628_224),
    **dict.fromkeys(("flora", "moslora"), 56_786_944),
    **dict.fromkeys(("lora_fa", "lori"), 25_165_824),
    "dora": 57_409_536,
    "lora_dash": 56_624_384,
    "rasa": 56_623_104 + 32 * 5 * 63,
    "dynamic_dora": 56_628_224,
}
COUNTS |= {f"{method} method.r=32": count for method, count in AT_RANK_32.items()}


@cache
def llama3_8b() -> Backbone:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        return outline(settings_of_run("task=commonsense170k", "method=lora").model, None)[0]


# The slow set counts every method; the counts on smaller backbones (tests/methods) are in `make test`.
COUNTED = {"lora", "full", "adalora", "flexlora", "flexlora method.r=32"}


@pytest.mark.parametrize("words", slow_but(COUNTED, COUNTS))
def test_the_counts_of_llama3_8b(words):
    settings = settings_of_run("task=commonsense170k", *f"method={words}".split())
    backbone = copy.deepcopy(llama3_8b())
    if words == "full":
        backbone.model.float()
    method, _ = make_method(settings, backbone, 31_956)
    count = method.parameters(method.wrap(backbone.model))
    assert (count["adapter_active"], count["head"]) == (COUNTS[words], 0)
    # LoRA-FA's A is a parameter all the same, though it never trains.
    frozen = 56_623_104 - 25_165_824 if words.startswith("lora_fa") else 0
    assert count["total"] == 8_030_261_248 + (0 if words == "full" else COUNTS[words] + frozen)


@pytest.mark.parametrize(
    ("row", "words"),
    {
        "LoRA r=8": "lora",
        "LoRA r=32": "lora method.r=32",
        "AdaLoRA r=8": "adalora",
        "AdaLoRA r=32": "adalora method.init_r=32 method.target_r=21",
        "LoRA-Dash": "lora_dash method.r=32",
        "NoRA+": "nora_plus method.r=32",
        "PrecLoRA": "prec_lora method.r=32",
        "FlexLoRA r=8": "flexlora method.r=12",
        "FlexLoRA r=32": "flexlora method.r=32",
    }.items(),
)
def test_the_counts_are_those_that_table_2_prints(row, words):
    (printed,) = {line.params for line in read_published("commonsense.csv") if line.row == row}
    assert f"{COUNTS[words] / 1e6:.1f}M" == printed


def test_the_recipe_is_table_9():
    run = settings_of_run("task=commonsense170k", "method=flexlora")
    training, method = run.training, run.method.fields
    assert (training.learning_rate, training.batch_size, training.epochs, training.warmup_steps) == (3e-4, 16, 3, 100)
    assert (method["r"], method["lora_alpha"], method["lora_dropout"], method["init_b"]) == (8, 16, 0.05, 4)
    assert (method["tinit"], method["tfinal"], method["deltaT"]) == (5000, 5000, 1000)
    assert run.paper_steps == -(-170_420 // 16) * 3
    assert (run.task.max_length, run.task.num_beams, run.task.max_new_tokens) == (256, 4, 32)
    assert training.eval_every == 0


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
def test_a_sharded_base_answers_as_a_whole_one(flexlora_run, short, tmp_path):
    """Two processes with unequal shares of the rows and answers of unequal length; no step moves the model."""
    options = [*short, "method=lora", "task.max_eval_rows=9", "training.eval_batch_size=2"]
    options += ["training.learning_rate=1e-12", "training.max_steps=1"]
    modes = {mode: [*options, f"task.evaluation_mode={mode}"] for mode in ("fast", "likelihood")}
    sharded = {mode: [*words, "training.shard_base=true"] for mode, words in modes.items()}
    start(tmp_path, [([*words, f"output_root={tmp_path / mode}"], None) for mode, words in sharded.items()], 240)
    for mode, words in modes.items():
        result = flexlora_run(*words, f"output_root={tmp_path / mode / 'whole'}")
        assert result.returncode == 0, result.stderr
        folders = tmp_path / mode / "whole", tmp_path / mode
        whole, shards = (record_of(folder, "lora").metrics["last"] for folder in folders)
        assert_equal_answers(whole, shards)


def assert_equal_answers(whole, shards):
    for name in whole:
        if name.endswith(("accuracy", "unparsed", "average")):
            assert whole[name] == shards[name], name
    for name, loss in whole["eval_loss"].items():
        assert shards["eval_loss"][name] == pytest.approx(loss, rel=1e-5)
