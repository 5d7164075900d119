"""GSM8K through the runner: what a run records, samples in a record, and the exact counts of Llama-3.1-8B."""

import math
from functools import cache

import pytest
from commonsense_helpers import write_llama
from compose_helpers import settings_of_run
from gsm8k_helpers import write_folder

from flexlora.models import outline
from flexlora.results.predictions import LAST, read_answers
from flexlora.results.record import read_record
from flexlora.training.plan import make_method


@cache
def llama3_1_8b(method: str):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        settings = settings_of_run("task=gsm8k", f"method={method}")
        return settings, outline(settings.model, None)[0]


@pytest.mark.parametrize(("method", "count"), [("lora", 6_815_744), ("sharelora", 2_752_512)])
def test_the_counts_of_llama3_1_8b_are_those_of_q_k_v_and_o_at_rank_8(method, count):
    settings, backbone = llama3_1_8b(method)
    made, _ = make_method(settings, backbone, 1563)
    counted = made.parameters(made.wrap(backbone.model))
    assert (counted["adapter_active"], counted["head"], counted["total"]) == (count, 0, 8_030_261_248 + count)


def test_the_protocol_has_64_rows_in_a_step():
    training = settings_of_run("task=gsm8k", "method=lora").training
    assert training.batch_size * training.gradient_accumulation == 64
    assert (training.learning_rate, training.weight_decay, training.warmup_ratio) == (5e-5, 5e-4, 0.03)
    tiny = settings_of_run("task=gsm8k", "method=lora", "scale=tiny")
    assert tiny.training.batch_size * tiny.training.gradient_accumulation == tiny.task.batch_size == 16


def test_a_run_records_the_final_number_of_each_sample(flexlora_run, tmp_path):
    """It needs a run: predictions that are NaN go through the record, the file of predictions and the report."""
    llama, data = write_llama(tmp_path / "llama"), write_folder(tmp_path / "data")
    words = ["task=gsm8k", "method=lora", "model=local", f"model.path={llama}", f"task.data_dir={data}"]
    words += ["task.num_samples=2", "task.temperature=1", "task.max_new_tokens=6", "task.main_metric=any_accuracy"]
    words += ["training.max_steps=2", "training.precision=fp32", "variant=test", f"output_root={tmp_path}"]
    done = flexlora_run(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "local/gsm8k/llama/lora/test/seed0"
    record = read_record(folder / "result.json")
    last = record.metrics["last"]
    assert {"accuracy", "unparsed", "majority_accuracy", "any_accuracy"} <= last.keys()
    answers = read_answers(folder / LAST)
    assert answers.labels["test"].tolist() == [5, 5, 7, 7, 9, 9, 11, 11]
    assert sum(map(math.isnan, answers.predictions["test"])) == last["unparsed"]
    again = flexlora_run(*words)
    assert again.returncode == 0
    assert "already done" in again.stdout + again.stderr or "skip" in again.stdout + again.stderr
