"""`flexlora-run` through the installed command, on data and a model that the tests make, and on real CoLA."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from runner_helpers import one_line

from flexlora.results.record import read_record


def folder_of(root: Path, method: str, tiny_bert: Path, seed: int = 0) -> Path:
    return root / "local" / "glue" / "cola" / tiny_bert.name / method / "test" / f"seed{seed}"


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def sweep(flexlora_run, arguments, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """All three methods in one process, as a sweep: three runs that the tests below look at."""
    root = tmp_path_factory.mktemp("outputs")
    return root, flexlora_run("-m", *arguments, "method=linear,lora,flexlora", f"output_root={root}")


@pytest.mark.parametrize("method", ["linear", "lora", "flexlora"])
def test_a_run_leaves_a_whole_record(sweep, tiny_bert, method):
    root, result = sweep
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 runs: 3 done" in result.stdout
    folder = folder_of(root, method, tiny_bert)
    names = {file.name for file in folder.iterdir()} - {".lock"}
    predictions = {"predictions-last.parquet", "predictions-best.parquet"}
    assert names == {"result.json", "metrics.jsonl", "ranks.jsonl", "adapter", "config.yaml", "log.txt", *predictions}

    record = read_record(folder / "result.json")
    assert (record.status, record.error, record.method, record.variant) == ("done", None, method, "test")
    assert (record.steps, record.total_steps, record.epochs) == (32, 32, 4.0)
    assert record.samples == {"train": 64, "evaluation": {"validation": 40}}
    assert record.subset is False
    assert len(record.history) == 4
    assert record.metrics["last"] == record.history[-1]
    scores = [evaluation["matthews_correlation"] for evaluation in record.history]
    assert record.metrics["best"] == record.history[scores.index(max(scores))]
    assert record.data["source"] == "folder"
    assert record.config["training"]["epochs"] == 4
    assert 0 < record.train_seconds < record.total_seconds
    assert record.eval_seconds > 0
    assert record.tokens["real"] <= record.tokens["padded"]
    assert record.versions["torch"] == torch.__version__.partition("+")[0]
    assert record.hardware["device"] == "cpu"
    assert record.adapter_bytes == sum(file.stat().st_size for file in (folder / "adapter").glob("*.safetensors"))

    rows = json_lines(folder / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "train"] == [20, 32]
    assert [row["step"] for row in rows if row["kind"] == "eval"] == [8, 16, 24, 32]
    assert all(row["learning_rate"] >= 0 and row["grad_norm"] > 0 for row in rows if row["kind"] == "train")
    assert "matthews_correlation" in (folder / "log.txt").read_text()


def test_the_counts_of_parameters_are_exact(sweep, tiny_bert):
    root, _ = sweep
    # Hidden 32, intermediate 64, two layers: q, k, v and attention output 32 × 32, then 64 × 32 and 32 × 64.
    unit = 2 * (4 * (32 + 32) + 2 * (32 + 64))
    head = (32 * 32 + 32) + (32 * 2 + 2)
    counts = {m: read_record(folder_of(root, m, tiny_bert) / "result.json").parameters for m in ("linear", "lora")}
    assert (counts["linear"]["adapter_active"], counts["linear"]["head"]) == (0, head)
    assert (counts["lora"]["adapter_active"], counts["lora"]["head"]) == (8 * unit, head)
    assert counts["lora"]["adapter_allocated"] == 8 * unit


def test_flexloras_events_are_recorded(sweep, tiny_bert):
    root, result = sweep
    folder = folder_of(root, "flexlora", tiny_bert)
    record = read_record(folder / "result.json")
    events = json_lines(folder / "ranks.jsonl")
    # 32 of the recipe's 5,360 steps: 1000 → 6, 1000 → 6, 200 → 1.
    assert record.schedule["used"] == {"tinit": 6, "tfinal": 6, "deltaT": 1}
    assert record.schedule["given"] == {"tinit": 1000, "tfinal": 1000, "deltaT": 200}
    assert record.schedule["factor"] == pytest.approx(32 / 5360)
    assert "tinit 1000 → 6, tfinal 1000 → 6, deltaT 200 → 1" in result.stdout
    assert [event["step"] for event in events] == list(range(7, 26))
    assert all(sum(event["ranks"].values()) == 12 * 8 for event in events)
    assert record.rank_events["count"] == len(events)
    assert record.rank_events["final_ranks"] == events[-1]["ranks"]
    assert min(events[-1]["ranks"].values()) < 8 < max(events[-1]["ranks"].values())
    assert record.parameters["adapter_active"] == events[-1]["active_parameters"]


def test_methods_without_ranks_have_no_events(sweep, tiny_bert):
    root, _ = sweep
    folder = folder_of(root, "lora", tiny_bert)
    assert (folder / "ranks.jsonl").read_text() == ""
    record = read_record(folder / "result.json")
    assert record.rank_events is None
    assert record.schedule is None


@pytest.mark.parametrize("method", ["lora", "flexlora"])
def test_plain_peft_loads_the_adapter_to_the_recorded_score(sweep, tiny_bert, cola, method):
    """What was saved is what was evaluated: scoring it by hand gives the record's last figure."""
    from peft import PeftModel
    from sklearn.metrics import matthews_corrcoef
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    root, _ = sweep
    folder = folder_of(root, method, tiny_bert)
    torch.manual_seed(123)  # another head than the run's, if the adapter did not bring its own
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2)
    model = PeftModel.from_pretrained(base, folder / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    rows = [line.split("\t") for line in (cola / "CoLA" / "dev.tsv").read_text().splitlines()]
    batch = tokenizer([row[3] for row in rows], padding=True, return_tensors="pt")
    labels = torch.tensor([int(row[1]) for row in rows])
    with torch.no_grad():
        output = model(**batch, labels=labels)
    last = read_record(folder / "result.json").metrics["last"]
    assert float(output.loss) == pytest.approx(last["eval_loss"]["validation"], abs=1e-5)
    predicted = output.logits.argmax(dim=-1)
    assert matthews_corrcoef(labels, predicted) == pytest.approx(last["matthews_correlation"], abs=1e-9)


def test_a_linear_probe_saves_its_head_and_nothing_else(sweep, tiny_bert):
    from safetensors.torch import load_file

    root, _ = sweep
    saved = load_file(folder_of(root, "linear", tiny_bert) / "adapter" / "trained.safetensors")
    assert {name.rpartition(".")[0] for name in saved} == {"bert.pooler.dense", "classifier"}


def test_training_learns(sweep, tiny_bert):
    """Loss falls; a loop that stepped nothing, or the wrong parameters, would leave it at ln 2."""
    root, _ = sweep
    for method in ("lora", "flexlora"):
        losses = [row["train_loss"] for row in read_record(folder_of(root, method, tiny_bert) / "result.json").history]
        assert losses[-1] < losses[0] - 0.05, (method, losses)


def test_a_finished_run_is_skipped_and_another_config_refused(sweep, flexlora_run, arguments, tiny_bert):
    root, _ = sweep
    before = (folder_of(root, "lora", tiny_bert) / "result.json").read_bytes()
    again = flexlora_run(*arguments, "method=lora", f"output_root={root}")
    assert again.returncode == 0
    assert again.stdout.strip().endswith("is finished: skipped")
    other = flexlora_run(*arguments, "method=lora", f"output_root={root}", "training.learning_rate=1e-3")
    assert other.returncode == 2
    assert "training.learning_rate: 0.005 → 0.001" in one_line(other)
    assert (folder_of(root, "lora", tiny_bert) / "result.json").read_bytes() == before


def test_the_same_run_twice_gives_the_same_figures(sweep, flexlora_run, arguments, tiny_bert, tmp_path):
    root, _ = sweep
    result = flexlora_run(*arguments, "method=flexlora", f"output_root={tmp_path}")
    assert result.returncode == 0, result.stderr
    first, second = (read_record(folder_of(r, "flexlora", tiny_bert) / "result.json") for r in (root, tmp_path))
    for before, after in zip(first.history, second.history, strict=True):
        assert before["train_loss"] == after["train_loss"]
        assert before["eval_loss"] == after["eval_loss"]
    assert first.rank_events == second.rank_events


def test_steps_accumulation_precision_and_absolute_windows(flexlora_run, arguments, tiny_bert, tmp_path):
    result = flexlora_run(
        *arguments,
        "method=flexlora",
        f"output_root={tmp_path}",
        "training.max_steps=9",
        "training.gradient_accumulation=3",
        "training.eval_every=4",
        "training.precision=bf16",
        "schedule=absolute",
        "method.tinit=2",
        "method.tfinal=2",
        "method.deltaT=2",
        "method.max_rank=8",
        "task.max_train_rows=60",
    )
    assert result.returncode == 0, result.stderr
    folder = folder_of(tmp_path, "flexlora", tiny_bert)
    record = read_record(folder / "result.json")
    assert record.subset is True
    assert record.steps == 9  # 60 rows in batches of 8, three to a step: 3 steps an epoch
    assert [evaluation["step"] for evaluation in record.history] == [4, 8, 9]
    assert record.history[-1]["epoch"] == 3.0
    assert [event["step"] for event in json_lines(folder / "ranks.jsonl")] == [4, 6]
    # With no room to grow nothing moves: that is worth a line.
    assert record.rank_events["alarms"] == ["12 of 12 modules ended at their rank limit: raise max_rank"]
    assert "12 of 12 modules ended at their rank limit" in result.stdout
    from safetensors.torch import load_file

    saved = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for name, tensor in saved.items() if tensor.is_floating_point()} == {torch.float32}


def test_a_loss_that_is_not_finite_is_recorded_with_its_step(flexlora_run, arguments, tiny_bert, tmp_path):
    result = flexlora_run(
        *arguments,
        "method=lora",
        f"output_root={tmp_path}",
        "training.learning_rate=1e30",
        "training.warmup_ratio=0",
        "training.log_every=3",
    )
    assert result.returncode == 1, result.stdout + result.stderr
    record = read_record(folder_of(tmp_path, "lora", tiny_bert) / "result.json")
    assert record.status == "diverged"
    assert "not finite at step 2" in record.error
    assert record.steps == 3
    assert "diverged: the loss is not finite at step 2" in result.stdout


def test_a_model_fine_tuned_for_other_classes_gets_a_new_head(flexlora_run, arguments, tiny_bert, tmp_path):
    """Three classes there, two here; the folder's name, the seed and the row of options between settings as typed."""
    import shutil

    from transformers import AutoModelForSequenceClassification

    folder = Path(shutil.copytree(tiny_bert, tmp_path / "drei Klassen ß"))
    AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3).save_pretrained(folder)
    result = flexlora_run(
        *arguments, "-m", f"model.path={folder}", "method=linear", "training.max_steps=2", f"output_root={tmp_path}"
    )
    assert "cannot read" in result.stderr  # ß is beyond Hydra's letters
    result = flexlora_run(
        *arguments, "-m", f'model.path="{folder}"', "method=linear", "training.max_steps=2", f"output_root={tmp_path}"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "model.path: classifier.weight has another shape in the checkpoint and is initialised again" in result.stdout
    record = read_record(
        tmp_path / "local" / "glue" / "cola" / folder.name / "linear" / "test" / "seed0" / "result.json"
    )
    assert record.parameters["head"] == (32 * 32 + 32) + (32 * 2 + 2)


def test_a_sweep_goes_on_after_a_failed_run_and_says_so(flexlora_run, arguments, tiny_bert, tmp_path):
    result = flexlora_run(
        "-m", *arguments, "method=linear", "seed=0,1", f"output_root={tmp_path}", "training.epochs=1", "task=glue/cola",
        "task.num_labels=2,3",
    )  # fmt: skip
    # Three labels for two names: the batches do not mind, so the runs meet in one folder and the second is refused.
    assert result.returncode == 2
    assert "4 runs: 2 done, 2 refused" in result.stdout
    assert all(
        read_record(folder_of(tmp_path, "linear", tiny_bert, s) / "result.json").status == "done" for s in (0, 1)
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "flexlora"])
def test_real_cola_on_a_real_encoder(flexlora_run, shared, tmp_path, method):
    """256 genuine sentences, one epoch: the whole way on real data, not a figure to trust."""
    model = shared / "models" / "minilm-l6-h384"
    if not model.is_dir():
        pytest.skip("no shared real model beside the repository (FLEXLORA_SHARED may name it)")
    result = flexlora_run(
        "task=glue/cola", f"method={method}", "model=local", f"model.path={model}",
        f"task.data_dir={shared / 'data' / 'glue'}", "task.max_train_rows=256", "training.epochs=1",
        f"output_root={tmp_path}", "variant=test",
        timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    record = read_record(folder_of(tmp_path, method, model) / "result.json")
    assert record.samples == {"train": 256, "evaluation": {"validation": 1043}}
    assert record.steps == 8
    assert 0.3 < record.train_loss < 0.8
    # Six linears of 384 and 1536 in six layers, rank 8, and pooler and classifier.
    assert record.parameters["head"] == (384 * 384 + 384) + (384 * 2 + 2)
    if method == "lora":
        assert record.parameters["adapter_active"] == 8 * 6 * (4 * 768 + 2 * 1920)
    else:
        assert sum(record.rank_events["final_ranks"].values()) == 36 * 8
