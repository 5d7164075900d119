"""A sweep accounts for every run, whatever became of its process, and the same command again fills the gaps."""

import re
import shlex
from pathlib import Path

import pytest
from filelock import FileLock
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

from flexlora.cli.sweep import DIED, NOT_STARTED, STOPPED, Journal, PatientLauncher, job_of, page
from flexlora.errors import UserError
from flexlora.results.record import Ending, read_record
from flexlora.testing.commands import COMMAND, RunCommand

# A method whose fate, one of its fields, is to meet an accident at its fifth step unless `healed` exists.
FATED = """
import math, os, signal
from pathlib import Path

from flexlora.methods.mask import MaskMethod


class Fated(MaskMethod):
    def __init__(self, fate, head_modules):
        super().__init__([], head_modules)
        self.fate = fate

    def attach(self, model, optimizer):
        self.model = model

    def after_step(self, step, optimizer):
        if step < 5 or (Path(__file__).parent / "healed").exists():
            return
        if self.fate == "raises":
            raise RuntimeError("its fate")
        if self.fate == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fate == "diverges":
            self.model.classifier.weight.data.fill_(math.nan)


def build(fields, context):
    return Fated(fields["fate"], context.head_modules)
"""
CALM = [f"calm{number}" for number in range(8)]


@pytest.fixture
def fated(tmp_path: Path) -> Path:
    """What `--config-dir` names, with the method's module beside it."""
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "fated.yaml").write_text("name: fated\nkind: my.fated\nfate: calm\n", "utf-8")
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "fated.py").write_text(FATED, encoding="utf-8")
    return tmp_path


def sweep(flexlora_run: RunCommand, fated: Path, arguments: list[str], fates: list[str], *more: str):
    """A sweep over `fates`; launchers that start processes themselves need a fresh interpreter."""
    rest = [item for item in arguments if not item.startswith("variant=")]
    command = ["-m", "--config-dir", str(fated / "conf"), *rest, f"output_root={fated}/out", "method=fated"]
    command += [f"method.fate={','.join(fates)}", "training.checkpoint_every=2", *more]
    return flexlora_run(*command, timeout=400, fresh=bool(more), PYTHONPATH=str(fated))


def listed(stdout: str) -> dict[str, tuple[str, str, str]]:
    """The list at the end: fate → (status, command, reason)."""
    lines = stdout[re.search(r"^(\d+ runs|1 run): ", stdout, re.M).start() :].splitlines()
    found: dict[str, tuple[str, str, str]] = {}
    for line in lines[1:]:
        entry = re.match(r"  (\S+(?: \w+)*?) +(flexlora-run --config-dir=\S+ method\.fate=(\w+) .*)$", line)
        if entry:
            status, command, fate = entry.groups()
            found[fate] = (status, command, "")
        else:
            found[fate] = (*found[fate][:2], line.strip())
    return found


def folders(fated: Path) -> dict[str, Path]:
    """Fate → the run's folder, of those that left a record."""
    return {
        read_record(file).config["method"]["fate"]: file.parent
        for file in (fated / "out" / "local").rglob("result.json")
    }


@pytest.mark.slow
def test_twelve_jobs_with_four_accidents_are_all_accounted_for(flexlora_run, fated, arguments):
    # The one that dies has calm ones around it: joblib takes down what runs beside it.
    fates = ["raises", "locked", "diverges", *CALM[:4], "dies", *CALM[4:]]
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    variant = "method.fate-locked+training.batch_size-8+training.checkpoint_every-2+training.epochs-4"
    model = next(item for item in arguments if item.startswith("model.path=")).rpartition("/")[2]
    locked = fated / "out" / "local" / "glue" / "cola" / model / "fated"
    locked = locked / f"{variant}+training.learning_rate-0.005" / "seed0"
    locked.mkdir(parents=True)
    with FileLock(locked / ".lock"):
        first = sweep(flexlora_run, fated, arguments, fates, *parallel)
    assert first.returncode == 1, first.stdout + first.stderr
    ends = listed(first.stdout)
    assert set(ends) == set(fates)
    assert "12 runs: " in first.stdout
    assert ends["dies"][::2] == (DIED.status, DIED.reason)
    assert ends["raises"][::2] == ("failed", "RuntimeError: its fate")
    assert ends["diverges"][0] == "diverged"
    assert "the loss is not finite" in ends["diverges"][2]
    assert ends["locked"][0] == "refused"
    assert "is in use by" in ends["locked"][2]
    # One at most ran beside the one that died.
    beside = [fate for fate in CALM if ends[fate][0] != "done"]
    assert len(beside) <= 1
    assert all(ends[fate][0] == "interrupted" for fate in beside)
    before = {fate: folder.joinpath("result.json").read_bytes() for fate, folder in folders(fated).items()}
    assert not list((fated / "out").glob(".sweep-*"))
    assert read_record(folders(fated)["raises"] / "result.json").status == "failed"
    assert "dies" not in before

    # The command that the list gives repeats the one run, and goes on with it.
    (fated / "my" / "healed").touch()
    program, *alone = shlex.split(ends["dies"][1])
    assert program == COMMAND.name
    again = flexlora_run(*alone, PYTHONPATH=str(fated))
    assert again.returncode == 0, again.stderr
    assert "resumed after step 4" in again.stdout
    before["dies"] = (folders(fated)["dies"] / "result.json").read_bytes()

    # One after another: what is done does not depend on the launcher.
    second = sweep(flexlora_run, fated, arguments, fates)
    assert second.returncode == 0, second.stdout + second.stderr
    ends = listed(second.stdout)
    done = {fate for fate in before if fate not in {"raises", "diverges"}}
    assert {fate for fate in fates if ends[fate][0] == "skipped"} == done
    assert {fate for fate in fates if ends[fate][0] == "done"} == set(fates) - done
    after = {fate: folder.joinpath("result.json").read_bytes() for fate, folder in folders(fated).items()}
    assert set(after) == set(fates)
    assert all(after[fate] == before[fate] for fate in done), "done twice"


@pytest.mark.slow
def test_submitit_waits_for_the_others_when_one_dies(flexlora_run, fated, arguments):
    result = sweep(flexlora_run, fated, arguments, ["dies", "calm0"], "hydra/launcher=submitit_local")
    assert result.returncode == 1, result.stdout + result.stderr
    assert {fate: status for fate, (status, _, _) in listed(result.stdout).items()} == {
        "dies": "interrupted",
        "calm0": "done",
    }


def test_one_after_another_in_one_process(flexlora_run, fated, arguments):
    result = sweep(flexlora_run, fated, arguments, ["raises", "calm0"])
    assert result.returncode == 1, result.stdout + result.stderr
    ends = listed(result.stdout)
    assert ends["raises"][::2] == ("failed", "RuntimeError: its fate")
    assert ends["calm0"][0] == "done"
    # The same value in another spelling is the same run.
    alone = [item.replace("0.005", "5e-3") for item in shlex.split(ends["calm0"][1])[1:]]
    assert "training.learning_rate=5e-3" in alone
    again = flexlora_run(*alone, PYTHONPATH=str(fated))
    assert again.returncode == 0
    assert "is finished: skipped" in again.stdout
    same = sweep(flexlora_run, fated, arguments, ["raises", "calm0"])
    assert [listed(same.stdout)[name][0] for name in ("raises", "calm0")] == ["failed", "skipped"]
    assert same.stdout.count("is finished: skipped") == 1


class Fragile(Launcher):
    """A launcher whose worker dies in the third job, and with it those after."""

    def __init__(self, journal: Journal, dies: str) -> None:
        self.journal = journal
        self.dies = dies
        self.began: list[str] = []
        self.calls = 0

    def setup(self, **_) -> None: ...

    def launch(self, job_overrides, initial_job_idx):
        self.calls += 1
        for overrides in job_overrides:
            job = job_of(overrides)
            self.began.append(job[0])
            self.journal.write(job, None)
            if job[0] == self.dies:
                raise RuntimeError("a worker died")
            self.journal.write(job, Ending("done"))
        return [self.returned() for _ in job_overrides]

    def returned(self) -> JobReturn:
        result = JobReturn()
        result.status, result.return_value = JobStatus.COMPLETED, Ending("done")
        return result


def test_what_has_not_begun_when_a_worker_dies_is_launched_again(tmp_path):
    journal = Journal(tmp_path)
    fragile = Fragile(journal, dies="seed=2")
    launcher = PatientLauncher(fragile, journal)
    jobs = [[f"seed={number}", "hydra.launcher.n_jobs=2"] for number in range(5)]
    assert launcher.launch(jobs, 0) == []
    assert fragile.began == [f"seed={number}" for number in range(5)]
    endings = [launcher.ending(job_of(job)) for job in jobs]
    assert endings == [Ending("done"), Ending("done"), DIED, Ending("done"), Ending("done")]
    assert launcher.ending(("seed=9",)) == NOT_STARTED


def test_a_finished_job_is_not_launched(tmp_path):
    journal = Journal(tmp_path)
    fragile = Fragile(journal, dies="")
    launcher = PatientLauncher(fragile, journal)
    launcher.skip(("seed=1",))
    launcher.launch([["seed=0"], ["seed=1"], ["seed=2"]], initial_job_idx=0)
    assert fragile.began == ["seed=0", "seed=2"]
    assert launcher.ending(("seed=1",)) == Ending("skipped")

    launcher.launch([["seed=1"]], initial_job_idx=0)  # the wrapped launcher is not called
    assert fragile.calls == 1


def test_a_launcher_that_starts_nothing_is_not_asked_again(tmp_path):
    class Broken(Fragile):
        def launch(self, job_overrides, initial_job_idx):
            raise RuntimeError("no such partition")

    launcher = PatientLauncher(Broken(Journal(tmp_path), dies=""), Journal(tmp_path))
    with pytest.raises(UserError, match="hydra/launcher starts no run: no such partition"):
        launcher.launch([["seed=0"]], 0)
    assert not launcher.began


def test_a_sweep_that_is_stopped_knows_which_run_it_was_in(tmp_path):
    class Stopped(Fragile):
        def launch(self, job_overrides, initial_job_idx):
            try:
                super().launch(job_overrides, initial_job_idx)
            except RuntimeError:
                raise KeyboardInterrupt from None

    journal = Journal(tmp_path)
    launcher = PatientLauncher(Stopped(journal, dies="seed=1"), journal)
    with pytest.raises(KeyboardInterrupt):
        launcher.launch([["seed=0"], ["seed=1"], ["seed=2"]], 0)
    endings = [launcher.ending((f"seed={number}",)) for number in range(3)]
    assert endings == [Ending("done"), STOPPED, NOT_STARTED]


def test_the_list_puts_last_what_needs_a_look():
    text = page(
        {
            "flexlora-run seed=0": Ending("failed", "KeyError: x"),
            "flexlora-run seed=1": Ending("done"),
            "flexlora-run seed=2": Ending("skipped"),
            "flexlora-run 'task=a b'": Ending("not started"),
        }
    )
    assert text.splitlines() == [
        "",
        "4 runs: 1 failed, 1 done, 1 skipped, 1 not started",
        "  done         flexlora-run seed=1",
        "  skipped      flexlora-run seed=2",
        "  failed       flexlora-run seed=0",
        "               KeyError: x",
        "  not started  flexlora-run 'task=a b'",
    ]
    assert page({"flexlora-run": Ending("done")}).splitlines()[1] == "1 run: done"
