"""`make table…` and `make figure…`: what is missing is run, then written beside the runs; again, nothing is run."""

import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from compose_helpers import composed, settings_of_run
from omegaconf import OmegaConf
from report_helpers import COMMAND, write_run

from flexlora.cli.report_commands import FIGURES
from flexlora.conf_path import conf_dir
from flexlora.report.tables import TABLES

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {
    "table1": "glue",
    "table2": "commonsense170k",
    "table3": "vtab",
    "table4": "glue_table4",
    "table5": "glue_table5",
    "table6": "glue_table6",
    "table12": "cost_table12",
    "table13": "cost_table13",
    "table14": "cost_table14",
    "table15": "glue_table15",
    "table16": "vtab_table16",
    "table_e2_glue": "e2_glue",
    "table_e2_nlg": "e2_nlg",
    "table_e2_images": "e2_images",
    "table_e2_ablation": "e2_ablation",
    "table_e2_budget": "e2_budget",
    "figure2": "ranks",
    "figure3": "singular_values",
}

FIGURE_TARGETS = [target for target in TARGETS if target.startswith("figure")]

# By table: cannot be trained, or is cited and holds on no single GPU; needs adapters of other tasks.
NOT_RUN = {"table2": {"chatgpt", "full"}, "table1": {"adapter_fusion"}}

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")


def make(tmp_path: Path, *words: str, timeout: float = 240, **variables: str) -> subprocess.CompletedProcess[str]:
    """`make` with the commands of this very environment, which is taken for set up."""
    stamp = tmp_path / "installed"
    stamp.touch()
    given = [f"BIN={Path(sys.executable).parent}", f"STAMP={stamp}", f"RUNS={tmp_path / 'runs'}"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    environment = {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **variables}
    return subprocess.run(
        ["make", "--no-print-directory", *given, *words],
        cwd=ROOT, capture_output=True, text=True, timeout=timeout, env=environment, check=False,
    )  # fmt: skip


def test_help_lists_every_table_and_figure(tmp_path):
    listed = re.findall(r"^  make (\S+) +\S", make(tmp_path, "help").stdout, re.M)
    assert TARGETS.keys() | {"tables", "figures", "ablations", "list", "setup", "test", "lint"} <= set(listed)
    assert len(set(listed)) == len(listed)


def test_nothing_is_installed_into_another_checkouts_environment(tmp_path):
    """A git worktree may use it through a link; an editable install would replace the package there."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / ".venv").symlink_to("other")
    result = subprocess.run(["make", "setup"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("make: .venv is a link to another checkout's")
    assert list((tmp_path / "other").iterdir()) == []


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_names_what_there_is(tmp_path, target):
    """Its experiments, its table or figure; and nothing is written where it is only asked what is missing."""
    told = make(tmp_path, "-n", target, "SCALE=tiny", "SEEDS=0,4", "OVERRIDES=training.epochs=1")
    assert told.returncode == 0, told.stderr
    sweeps = re.findall(r"flexlora-run (.*?) \|\| code", told.stdout)
    seeds = "seed=$seed" if target in ("table12", "table13", "table14") else "'seed=0,4'"
    for sweep in sweeps:
        assert {"scale=tiny", seeds, "training.epochs=1", f"output_root={tmp_path / 'runs'}"} <= set(sweep.split())
    experiments = re.findall(r"experiment=(\w+)", told.stdout)
    assert len(sweeps) == (len(experiments) or 1)
    assert all((conf_dir() / "experiment" / f"{name}.yaml").is_file() for name in experiments)
    (found,) = {*re.findall(r"--(?:table|only) (\w+)", told.stdout)}
    assert found == TARGETS[target]
    assert found in (TABLES if target.startswith("table") else FIGURES)
    assert f"--save {tmp_path / 'runs'}/{'tables' if target.startswith('table') else 'figures'} " in told.stdout
    dry = make(tmp_path, "-n", target, "DRY=1")
    assert "flexlora-report" not in dry.stdout
    assert dry.stdout.count("dry=true") == len(sweeps)


def runs_of(sweep: str) -> list[dict[str, object]]:
    """`method.*` of every run of a sweep, by its words after `flexlora-run -m`, on one of its tasks and seeds."""
    (experiment,) = re.findall(r"experiment=\w+", sweep)
    params = composed(experiment, with_hydra=True).hydra.sweeper.params
    params = {key: str(values) for key, values in OmegaConf.to_container(params).items()}
    params |= dict(re.findall(r"(method\S*)=(\S+)", sweep))
    values = {key: text.split(",")[: 1 if key in ("task", "seed") else None] for key, text in params.items()}
    chosen = itertools.product(*([f"{key}={value}" for value in found] for key, found in values.items()))
    return [settings_of_run(experiment, *overrides).method for overrides in chosen]


@pytest.mark.parametrize(
    "target", [target for target in TARGETS if re.fullmatch(r"table([1-6]|15|16|_e2_\w+)", target)]
)
def test_a_table_s_target_runs_every_row_that_can_be_run(tmp_path, target):
    """By method, and by the settings that a run must have to stand beside the paper's row, such as its rank."""
    sweeps = re.findall(r"flexlora-run (.*?) \|\| code", make(tmp_path, "-n", target).stdout)
    runs = [run for sweep in sweeps for run in runs_of(sweep)]
    for row in TABLES[TARGETS[target]].paper_rows:
        beside = [run for run in runs if run.name == row.method]
        beside = [run for run in beside if all(run.fields.get(name) in allowed for name, allowed in row.settings)]
        assert beside or row.method in NOT_RUN.get(target, ()), row


def test_programs_that_a_model_wrote_run_only_if_the_user_says_so(tmp_path):
    told = make(tmp_path, "table_e2_nlg", "SEEDS=0", f"BIN={tmp_path / 'bin'}", "DRY=1")
    assert "HumanEval is left out, because it runs programs that a model wrote" in told.stderr
    asked = make(tmp_path, "-n", "table_e2_nlg", "RUN_GENERATED_CODE=1")
    assert "left out" not in asked.stdout
    words = re.findall(r"experiment=e2_humaneval (\S+) \|\| code", asked.stdout)
    assert words == ["task.run_generated_code=true"]
    assert "run_generated_code" not in make(tmp_path, "-n", "table_e2_nlg").stdout


@pytest.mark.parametrize("target", ["table1", "help"])
def test_a_misspelt_variable_is_refused(tmp_path, target):
    refused = make(tmp_path, target, "SEED=0")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "there is no variable SEED. There are: " in refused.stderr
    assert "SEEDS" in refused.stderr


def noting_commands(tmp_path: Path, failing: str) -> Path:
    """Commands under `bin` that note their words in the file returned; one whose words are like `failing` fails."""
    notes = tmp_path / "notes"
    for name in ("flexlora-run", "flexlora-report"):
        command = tmp_path / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(f'#!/bin/sh\necho "{name} $@" >> "{notes}"\ncase "$@" in {failing}) exit 3;; esac\n')
        command.chmod(0o755)
    return notes


def test_costs_are_measured_in_turn_each_in_a_process_of_its_own(tmp_path):
    """One run fails: the others and the table are made all the same."""
    notes = noting_commands(tmp_path, failing="*seed=0*adalora")
    made = make(tmp_path, "table14", "SEEDS=0,1", f"BIN={tmp_path / 'bin'}")
    assert made.returncode != 0
    *lines, saved, shown = notes.read_text().splitlines()
    runs = [re.findall(r"(?:task|seed|method)=(\S+)", line) for line in lines]
    tasks, methods = ("vtab/cifar100", "vtab/resisc45", "vtab/dmlab"), ("lora", "adalora", "flexlora")
    assert runs == [[task, seed, method] for task in tasks for seed in "01" for method in methods]
    assert all("experiment=cost" in line.split() for line in lines)
    table = [str(tmp_path / "runs"), "--table", "cost_table14"]
    assert saved.split()[1:] == [*table, "--save", str(tmp_path / "runs" / "tables")]
    assert shown.split()[1:] == table


@pytest.mark.parametrize("target", ["table12", "table13", "table14"])
@pytest.mark.parametrize("words", [("SEEDS=range(0,3)",), ("SEEDS=range(0,3)", "DRY=1"), ("SEEDS=",)])
def test_seeds_that_costs_cannot_take_are_refused_in_one_line(tmp_path, target, words):
    notes = noting_commands(tmp_path, failing="none")
    made = make(tmp_path, target, *words, f"BIN={tmp_path / 'bin'}")
    assert made.returncode == 2
    told, of_make = made.stderr.splitlines()
    given = words[0].removeprefix("SEEDS=")
    assert told == (
        f"make {target}: it starts its runs one by one and needs a list of seeds (SEEDS=0,1,2), not SEEDS='{given}'"
    )
    assert of_make.startswith("make: ***")
    assert not notes.exists()


def test_every_ablation_of_ours_is_run_whatever_became_of_another(tmp_path):
    notes = noting_commands(tmp_path, failing="*ablation_budget")
    made = make(tmp_path, "ablations", "SCALE=tiny", "SEEDS=range(0,2)", f"BIN={tmp_path / 'bin'}")
    assert made.returncode == 2
    runs = [line.split() for line in notes.read_text().splitlines() if line.startswith("flexlora-run")]
    experiments = sorted(path.stem for path in (conf_dir() / "experiment").glob("ablation_*.yaml"))
    assert len(experiments) > 10
    assert [words[-1] for words in runs] == [f"experiment={name}" for name in experiments]
    assert all({"scale=tiny", "seed=range(0,2)", f"output_root={tmp_path / 'runs'}"} <= {*words} for words in runs)
    told = make(tmp_path, "-n", "ablations", "DRY=1", "OVERRIDES=training.epochs=1")
    assert told.stdout.count("dry=true training.epochs=1") == len(experiments)
    assert "flexlora-report" not in told.stdout


def test_the_ablations_table_has_their_rows_in_every_format(tmp_path):
    """Beside FlexLoRA's default; of the runs of Table 1 it has no others."""
    noting_commands(tmp_path, failing="none")
    (tmp_path / "bin" / "flexlora-report").unlink()
    (tmp_path / "bin" / "flexlora-report").symlink_to(COMMAND)
    for method, variant in (("flexlora", "default"), ("flexlora", "method.init_b=0"), ("flexlora_released", "default"),
                            ("lora", "default")):  # fmt: skip
        for seed in range(2):
            write_run(tmp_path / "runs", 0.5 + seed / 10, method=method, variant=variant, seed=seed)
    made = make(tmp_path, "ablations", f"BIN={tmp_path / 'bin'}")
    assert made.returncode == 0, made.stderr
    files = {path.name: path.read_text() for path in (tmp_path / "runs" / "tables").iterdir()}
    assert files.keys() == {f"ablations.{ending}" for ending in ("md", "csv", "tex", "html")}
    names = [line.split(" | ")[0] for line in files["ablations.md"].splitlines() if line.startswith("| ")]
    other = "less flexlora's"
    assert names == ["| method", "| flexlora", "| flexlora method.init_b=0", f"| {other}", "| flexlora_released",
                     f"| {other}"]  # fmt: skip


def test_the_figures_runs_are_table_1s(tmp_path):
    """So `make list`, which says that it lists theirs, does."""
    params = yaml.safe_load((conf_dir() / "experiment" / "glue.yaml").read_text())["hydra"]["sweeper"]["params"]
    told = make(tmp_path, "-n", "figures")
    sweeps = re.findall(r"flexlora-run .*? task=(\S+) method=(\S+) \|\| code", told.stdout)
    assert len(sweeps) == len(FIGURE_TARGETS)
    assert "--keep-going" in told.stdout
    for task, method in sweeps:
        assert task in params["task"].split(",")
        assert method in params["method"].split(",")


def test_all_tables_are_made_whatever_became_of_another(tmp_path):
    told = make(tmp_path, "-n", "tables", "DRY=1", "SEEDS=3")
    tables = {"vtab", "vtab_table16"}
    tables |= {f"commonsense170k{rows}" for rows in ("", "_r12", "_r32", "_adalora", "_adalora_r32")}
    tables |= {"glue", "cost", *(f"table{number}" for number in (4, 5, 6, 15))}
    tables |= {path.stem for path in (conf_dir() / "experiment").glob("e2_*.yaml")} - {"e2_humaneval"}
    assert tables == set(re.findall(r"experiment=(\w+)", told.stdout))
    assert "--keep-going" in told.stdout
    listed = make(tmp_path, "-n", "list", "SEEDS=3")
    lines = re.findall(r"flexlora-run .*", told.stdout)
    assert lines == re.findall(r"flexlora-run .*", listed.stdout)


def test_the_rows_of_an_ablation_are_table_1s(tmp_path):
    """Their runs are the very same, in the same folders: Table 4 does not train anew what Table 1 did."""
    params = yaml.safe_load((conf_dir() / "experiment" / "glue.yaml").read_text())["hydra"]["sweeper"]["params"]
    told = make(tmp_path, "-n", "table4").stdout
    (methods,) = re.findall(r"experiment=glue method=(\S+)", told)
    assert set(methods.split(",")) <= set(params["method"].split(","))


@pytest.mark.slow
def test_a_figure_runs_what_is_missing_and_is_drawn(tmp_path, tiny_cache):
    words = ("figure3", "SCALE=tiny", "SEEDS=0", "OVERRIDES=training.max_steps=12 schedule=absolute method.tinit=2 "
             "method.tfinal=2 method.deltaT=2 task.max_train_rows=64 task.max_eval_rows=32")  # fmt: skip
    dry = make(tmp_path, *words, "DRY=1", FLEXLORA_CACHE=str(tiny_cache))
    assert (dry.returncode, "1 run: missing" in dry.stdout) == (0, True), dry.stdout + dry.stderr
    assert not list((tmp_path / "runs").rglob("*.png"))
    first = make(tmp_path, *words, FLEXLORA_CACHE=str(tiny_cache))
    assert first.returncode == 0, first.stdout + first.stderr
    folder = tmp_path / "runs" / "figures"
    files = {path.suffix: path.read_bytes() for path in folder.iterdir()}
    assert files.keys() == {".png", ".svg"}
    assert all(path.name.startswith("singular_values_tiny_") for path in folder.iterdir())
    assert files[".png"].startswith(b"\x89PNG")
    again = make(tmp_path, *words, FLEXLORA_CACHE=str(tiny_cache))
    assert (again.returncode, "1 run: skipped" in again.stdout) == (0, True), again.stdout
    assert {path.suffix: path.read_bytes() for path in folder.iterdir()} == files
