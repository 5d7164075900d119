"""The purpose of `scale=tiny`: on generated CoLA adapters learn more than a linear probe, and ranks change."""

from pathlib import Path

import pytest

from flexlora.results.record import RunRecord, read_record


def record_of(root: Path, method: str, variant: str) -> RunRecord:
    folder = root / "tiny" / "glue" / "cola" / "deberta_v3_base" / method / variant / "seed0"
    return read_record(folder / "result.json")


def score(record: RunRecord) -> float:
    assert record.status == "done", record.error
    return record.metrics["last"]["matthews_correlation"]


@pytest.mark.slow
def test_adapters_beat_the_linear_probe_and_ranks_change(flexlora_run, tmp_path):
    common = ("task=glue/cola", "scale=tiny", f"output_root={tmp_path}")
    sweep = flexlora_run("-m", *common, "method=linear,lora,flexlora", timeout=1500)
    assert sweep.returncode == 0, sweep.stdout + sweep.stderr
    assert "3 runs: 3 done" in sweep.stdout
    assert sweep.stdout.count("this happens once") <= 1  # another test may have made it before
    probe, lora, flexlora = (record_of(tmp_path, m, "default") for m in ("linear", "lora", "flexlora"))
    assert score(lora) >= score(probe) + 0.10
    assert score(flexlora) >= score(probe) + 0.10
    assert probe.backbone == lora.backbone == flexlora.backbone
    assert flexlora.rank_events["count"] >= 5
    ranks = flexlora.rank_events["final_ranks"].values()
    assert len(ranks) == 18
    assert max(ranks) >= 8 + 2
    assert min(ranks) <= 8 - 2
    assert sum(ranks) == 18 * 8

    fixed = flexlora_run(*common, "method=flexlora", "method.init_b=0", "training.max_steps=80", timeout=600)
    assert fixed.returncode == 0, fixed.stdout + fixed.stderr
    assert "this happens once" not in fixed.stdout
    record = record_of(tmp_path, "flexlora", "method.init_b-0+training.max_steps-80")
    assert set(record.rank_events["final_ranks"].values()) == {8}
