"""`--against`: differences over shared seeds and their p, against closed forms of Student's distribution."""

import csv
import io
import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from report_helpers import figures, line_of, report, write_run

from flexlora.report.paired_test import Paired, paired

FIGURES = st.floats(-100, 100, allow_subnormal=False)


def outside(t: float, freedom: int) -> float:
    """The two-sided tail of Student's t in closed form, for 1, 2 and 4 degrees of freedom."""
    t = abs(t)
    if freedom == 1:
        return 1 - 2 / math.pi * math.atan(t)
    if freedom == 2:
        return 1 - t / math.sqrt(2 + t * t)
    u = 1 + t * t / 4
    return 1 - 3 / 4 * t / math.sqrt(u) * (1 - t * t / 12 / u)


@settings(deadline=None)  # the first call imports scipy
@given(st.sampled_from([2, 3, 5]).flatmap(lambda n: st.lists(st.tuples(FIGURES, FIGURES), min_size=n, max_size=n)))
def test_p_is_that_of_students_distribution(pairs):
    differences = [a - b for a, b in pairs]
    n, mean = len(pairs), math.fsum(differences) / len(pairs)
    deviation = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1))
    assume(deviation > 1e-3)
    found = paired({seed: a for seed, (a, _) in enumerate(pairs)}, {seed: b for seed, (_, b) in enumerate(pairs)})
    assert (found.n, found.difference) == (n, pytest.approx(mean, abs=1e-9))
    assert found.p == pytest.approx(outside(mean / deviation * math.sqrt(n), n - 1), abs=1e-6)


def test_only_shared_seeds_count():
    ours, reference = {0: 99.0, 1: 60.0, 2: 64.0, 7: 1.0}, {1: 50.0, 2: 52.0, 3: 0.0}
    found = paired(ours, reference)
    assert (found.difference, found.n) == (11, 2)
    assert found.p == pytest.approx(outside(11, 1))
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_without_spread_there_is_no_p():
    assert paired({0: 2.0}, {0: 1.0}) == Paired(1.0, 1, None)
    assert paired({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}) == Paired(1.0, 2, None)
    assert paired({0: 2.1, 1: 3.1}, {0: 1.0, 1: 2.0}).p is None  # 1.1 twice, but for rounding


def write_three(root):
    """lora with seeds 0 to 2, flexlora with 1 to 3: 60 and 64 against 50 and 52 where both are."""
    for seed, value in ((0, 0.4), (1, 0.50), (2, 0.52)):
        write_run(root, value, method="lora", seed=seed)
    for seed, value in ((1, 0.60), (2, 0.64), (3, 0.9)):
        write_run(root, value, method="flexlora", seed=seed)


def test_a_row_less_the_references(tmp_path):
    write_three(tmp_path)
    text = report(tmp_path, "--against", "lora").stdout
    assert line_of(text, "  less lora's") == ["less", "lora's", "+11.0", "p", f"{outside(11, 1):.3f}", "(2)"]
    assert text.count("less lora's") == 1
    assert "Less lora's: over the seeds that both rows have; p: two-sided paired t test, not corrected" in text
    lines = figures(tmp_path, "--against", "lora")
    found = {line["method"]: line for line in lines if line["metric"] == "matthews_correlation"}
    assert [found["lora"][key] for key in ("against", "paired_difference", "paired_n", "p")] == [""] * 4
    assert (found["flexlora"]["against"], found["flexlora"]["paired_n"]) == ("lora", "2")
    assert float(found["flexlora"]["paired_difference"]) == pytest.approx(11)
    assert float(found["flexlora"]["p"]) == pytest.approx(outside(11, 1))
    assert {line["paired_difference"] for line in lines if line["metric"].endswith("parameters")} == {""}
    assert "| less lora's |  |  | +11.0 p" in report(tmp_path, "--against", "lora", "--format", "markdown").stdout


def test_nothing_of_it_without_being_asked_for(tmp_path):
    write_three(tmp_path)
    result = report(tmp_path, "--format", "csv")
    assert "p" not in next(csv.reader(io.StringIO(result.stdout)))
    assert "less" not in report(tmp_path).stdout


def test_averages_are_compared_too(tmp_path):
    tasks = ("vtab/patch_camelyon", "vtab/eurosat", "vtab/resisc45", "vtab/diabetic_retinopathy")
    for seed, gain in enumerate((0.1, 0.2, 0.3)):
        for place, task in enumerate(tasks):
            write_run(tmp_path, 0.3 + place / 10, task=task, method="lora", seed=seed)
            write_run(tmp_path, 0.3 + place / 10 + gain, task=task, method="flexlora", seed=seed)
    found = {line["task"]: line for line in figures(tmp_path, "--against", "lora") if line["method"] == "flexlora"}
    average = found["average_specialized"]
    assert (float(average["paired_difference"]), average["paired_n"]) == (pytest.approx(20), "3")
    assert float(average["p"]) == pytest.approx(outside(20 / 10 * math.sqrt(3), 2))
    text = report(tmp_path, "--against", "lora").stdout
    assert f"p {outside(2 * math.sqrt(3), 2):.3f}" in text
    assert "(3)" not in text  # a wide table says its usual number of seeds once


def test_the_reference_is_the_methods_default_row(tmp_path):
    write_run(tmp_path, 0.5, variant="method.r-2")
    write_run(tmp_path, 0.7, method="flexlora")
    write_run(tmp_path, 0.6, variant="method.r-4")
    text = report(tmp_path, "--against", "lora").stdout
    assert "less lora's" not in text
    assert "nothing is compared with lora: it has no row here, or no other, or several and none is its default" in text
    write_run(tmp_path, 0.4)
    differences = {
        (line["method"], line["variant"]): line["paired_difference"] and round(float(line["paired_difference"]), 6)
        for line in figures(tmp_path, "--against", "lora")
        if line["metric"] == "matthews_correlation"
    }
    assert differences == {
        ("lora", "default"): "",
        ("lora", "method.r-2"): 10,
        ("lora", "method.r-4"): 20,
        ("flexlora", "default"): 30,
    }


def test_a_row_of_the_same_variant_comes_before_the_default_one(tmp_path):
    """What three epochs are worth is not the method's."""
    for method, default, longer in (("lora", 0.4, 0.6), ("flexlora", 0.5, 0.69)):
        write_run(tmp_path, default, method=method)
        write_run(tmp_path, longer, method=method, variant="training.epochs-3")
    write_run(tmp_path, 0.3, method="flexlora", variant="method.r-4")

    def differences():
        lines = figures(tmp_path, "--against", "lora")
        return {
            (line["method"], line["variant"]): line["paired_difference"] and round(float(line["paired_difference"]), 6)
            for line in lines
            if line["metric"] == "matthews_correlation"
        }

    assert differences() == {
        ("lora", "default"): "",
        ("lora", "training.epochs-3"): 20,
        ("flexlora", "default"): 10,
        ("flexlora", "method.r-4"): -10,
        ("flexlora", "training.epochs-3"): 9,
    }


def test_without_a_default_row_those_of_the_same_variants_are_compared(tmp_path):
    for variant, values in (("training.epochs-2", (0.4, 0.5)), ("training.epochs-3", (0.6, 0.69))):
        for method, value in zip(("lora", "flexlora"), values, strict=True):
            write_run(tmp_path, value, method=method, variant=variant)
    lines = figures(tmp_path, "--against", "lora")
    found = [line["paired_difference"] for line in lines if line["metric"] == "matthews_correlation"]
    assert sorted(round(float(value), 6) for value in found if value) == [9, 10]


def test_two_on_the_same_part_are_compared_where_others_are_on_the_whole(tmp_path):
    samples = {"train": 50, "evaluation": {"validation": 100}}
    for method, whole, part in (("lora", 0.5, 0.3), ("flexlora", 0.6, 0.37)):
        write_run(tmp_path, whole, method=method)
        write_run(tmp_path, part, method=method, task="rte", variant="rows", subset=True, samples=samples)
    lines = figures(tmp_path, "--against", "lora")
    found = {line["task"]: line["paired_difference"] for line in lines if line["paired_difference"]}
    assert {task: round(float(value), 6) for task, value in found.items()} == {"glue/cola": 10, "glue/rte": 7}


def test_what_all_rows_share_is_of_no_variant(tmp_path):
    """An ablation on a part of the data: its reference is the row without an override of its own."""
    for own, value in (("", 0.5), ("method.importance-random+", 0.4), ("method.init_b-0+", 0.6)):
        write_run(tmp_path, value, method="flexlora", variant=f"{own}task.max_train_rows-2000")
    lines = figures(tmp_path, "--against", "flexlora")
    found = {line["variant"]: line["paired_difference"] for line in lines if line["metric"] == "matthews_correlation"}
    assert next(iter(found)) == "task.max_train_rows-2000"  # above its variants
    assert {name.split("+")[0]: value and round(float(value), 6) for name, value in found.items()} == {
        "task.max_train_rows-2000": "",
        "method.importance-random": -10,
        "method.init_b-0": 10,
    }


def test_subsets_of_other_sizes_are_not_compared(tmp_path):
    def part(method, rows, value, **fields):
        samples = {"train": 50, "evaluation": {"validation": rows}}
        write_run(tmp_path, value, method=method, subset=True, samples=samples, **fields)

    part("lora", 100, 0.5)
    part("flexlora", 500, 0.7)
    part("dora", 100, 0.6)
    text = report(tmp_path, "--against", "lora").stdout
    assert text.count("less lora's") == 1
    assert line_of(text, "  less lora's")[2] == "+10.0"
    assert "ᵈ  other data than most runs of this task" in text
    markdown = report(tmp_path, "--format", "markdown").stdout
    assert "**60.0" in markdown  # not flexlora's 70, which is of other examples
    assert "**70.0" not in markdown


def test_a_subset_is_not_compared_with_the_whole(tmp_path):
    write_run(tmp_path, 0.5)
    write_run(tmp_path, 0.7, method="flexlora", subset=True)
    assert "less lora's" not in report(tmp_path, "--against", "lora").stdout
    write_run(tmp_path / "all", 0.5, subset=True)
    write_run(tmp_path / "all", 0.7, method="flexlora", subset=True)
    assert line_of(report(tmp_path / "all", "--against", "lora").stdout, "  less lora's")[2] == "+20.0"


@pytest.mark.parametrize("name", ["lor", "lora,flexlora"])
def test_a_method_that_was_not_run_is_refused(tmp_path, name):
    write_run(tmp_path)
    result = report(tmp_path, "--against", name)
    assert (result.returncode, result.stdout) == (2, "")
    assert f"no run of method '{name}'." in result.stderr
