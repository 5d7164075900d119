"""Hydra's own flags and its settings (`hydra.*`): each has its effect, or is refused in one line."""

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra

from flexlora.cli import command as command_module
from flexlora.cli import report as report_module
from flexlora.cli.choices import known_keys
from flexlora.cli.command import call_with_settings, refusal
from flexlora.cli.suggestions import OTHER_NAMES
from flexlora.errors import UserError
from flexlora.results.record import Ending

BIN = Path(sys.executable).parent
COLA = "task=glue/cola"

# The words, the exit code, and a part of what is printed: on stdout where the code is 0, else the line on stderr.
FLAGS: dict[str, tuple[list[str], int, str]] = {
    "-h": (["-h", COLA], 0, "== Choices (group=choice) =="),
    "--help": (["--help", "--resolve", COLA], 0, "learning_rate=0.0"),
    "--hydra-help": (["--hydra-help"], 0, "== Flags =="),
    "--version": (["--version"], 0, "flexlora-run "),
    "-c": (["-c", "job", COLA], 0, "batch_size:"),
    "--cfg": (["--cfg", "hydra"], 0, "hydra:"),
    "-c all": (["-c", "all"], 0, "hydra:"),
    "-c without its value": (["-c"], 2, "argument --cfg/-c: expected one argument. --hydra-help lists the flags."),
    "-c of nothing": (["-c", "jobs"], 2, "argument --cfg/-c: invalid choice: 'jobs'"),
    "-c and -m": (["-c", "job", "-m"], 2, "-m and -c exclude each other: leave all but one out"),
    "-r and -i": (["-r", "-i"], 2, "-r and -i exclude each other"),
    "-m and --multirun": (["-m", "--multirun", COLA], 0, ""),
    "--resolve": (["--resolve", COLA], 2, "--resolve resolves what --help or -c prints"),
    "-c with --resolve": (["-c", "job", "--resolve", COLA], 0, "learning_rate: 0.0"),
    "-c with --resolve and no task": (["-c", "job", "--resolve"], 2, "while resolving interpolation: method.tinit"),
    "-p": (["-p", "training", "-c", "job", COLA], 0, "batch_size:"),
    "--package": (["--package", "training", COLA], 2, "-p names a part of what -c prints"),
    "-p of nothing": (["-p", "nope", "-c", "job", COLA], 1, "package 'nope' not found in config"),
    "-r": (["-r", COLA], 0, ""),
    "--run": (["--run", COLA], 0, ""),
    "-m": (["-m", COLA, "seed=0,1"], 0, "2 runs: 2 done"),
    "--multirun": ([COLA, "--multirun", "seed=0,1"], 0, "2 runs: 2 done"),
    "-m with hydra.mode=RUN": (["-m", COLA, "hydra.mode=RUN"], 0, "1 run: done"),
    "-sc": (["-sc"], 2, "-sc takes install=SHELL, uninstall=SHELL or query=SHELL"),
    "--shell-completion": (["--shell-completion", "install=bash"], 0, "hydra_bash_completion"),
    "-sc uninstall": (["-sc", "uninstall=bash"], 0, "unset"),
    "-sc of another shell": (["-sc", "install=tcsh"], 2, "SHELL is bash, fish or zsh"),
    "-sc twice": (["-sc", "install=bash", "query=bash"], 2, "-sc takes install=SHELL"),
    "-sc query": (["-sc", "query=bash"], 2, "from the variable COMP_LINE, which is not set"),
    "-cp": (["-cp", "/nope", COLA], 2, "Primary config directory not found"),
    "--config-path": (["--config-path", "nope", COLA], 2, "Primary config module 'flexlora.cli.nope' not found"),
    "-cn": (["-cn", "nope", COLA], 2, "Cannot find primary config 'nope'"),
    "--config-name": (["--config-name"], 2, "argument --config-name/-cn: expected one argument"),
    "-cd": (["-cd", "/nope", COLA], 2, "Additional config directory '/nope' not found"),
    "--config-dir": (["--config-dir", ".", COLA], 0, ""),
    "--experimental-rerun": (["--experimental-rerun", "config.pickle"], 2, "would unpickle a file"),
    "-i": (["-i", "searchpath", COLA], 0, "Config search path"),
    "--info": (["--info", COLA], 2, "argument --info/-i: invalid choice: 'task=glue/cola'"),
    "-i of all": ([COLA, "-i"], 0, "Defaults List"),
    "a flag that is not there": (["--hepl"], 2, "unrecognized arguments: --hepl. Did you mean --help?"),
    "an abbreviation of two": (["--config-", COLA], 2, "ambiguous option: --config- could match"),
    "hydra.verbose, a number": ([COLA, "hydra.verbose=3"], 2, "hydra.verbose is true, false, or names of loggers"),
    "hydra.verbose, a logger": ([COLA, "hydra.verbose=[x]"], 0, ""),
    "hydra.verbose, null": ([COLA, "hydra.verbose=null"], 2, "hydra.verbose"),
    "hydra.mode": ([COLA, "hydra.mode=x"], 2, "hydra.mode=x: Invalid value 'x', expected one of [RUN, MULTIRUN]"),
    "hydra.job": ([COLA, "hydra.job=3"], 2, "hydra.job"),
    "hydra.run.dir": ([COLA, "hydra.run.dir=/proc/x"], 2, "cannot write /proc/x"),
    "hydra.job_logging": ([COLA, "hydra.job_logging=x"], 2, "hydra.job_logging"),
    "hydra.hydra_logging": (
        [COLA, "+hydra.hydra_logging.root.handlers=[x]"], 2, "Hydra cannot take this: ValueError",
    ),
    "hydra/launcher": ([COLA, "-m", "hydra/launcher=nope"], 2, "Could not find 'hydra/launcher/nope'"),
    "hydra.launcher": ([COLA, "-m", "hydra.launcher._target_=os.system"], 2, ""),
    "hydra.sweeper": ([COLA, "-m", "hydra.sweeper._target_=os.system"], 2, ""),
    "hydra.callbacks": ([COLA, "+hydra.callbacks.x._target_=os.nope"], 2, ""),
}  # fmt: skip


@pytest.fixture(autouse=True)
def hydra_of_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A command changes the signals, the environment and Hydra's global state of its process."""
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.delenv("COMP_LINE", raising=False)
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    GlobalHydra.instance().clear()
    for number, handler in signals.items():
        signal.signal(number, handler)


def called(*words: str) -> tuple[int, str, str]:
    """The exit code of `flexlora-run <words>`, what it prints and what it says; its runs do nothing."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["flexlora-run", *words])
        try:
            endings = call_with_settings("flexlora-run", lambda settings, plain, overrides: Ending("done"))
            code = 2 if "refused" in {ending.status for ending in endings} else 0
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("case", FLAGS)
def test_a_flag_has_its_effect_or_is_refused_in_one_line(case: str, recwarn: pytest.WarningsRecorder) -> None:
    words, expected, part = FLAGS[case]
    code, out, err = called(*words)
    assert code == expected, err
    if code:
        assert len(err.splitlines()) == 1, err
        assert part in err
    else:
        assert part in out
        assert err == ""


# What a newcomer types, and what the line on stderr says at its end. Every word is from another program's habits.
WORDS: dict[str, str] = {
    "lr=1e-3": "there is no setting 'lr'. Did you mean training.learning_rate?",
    "task=cola": "there is no task 'cola'. Did you mean glue/cola?",
    "method=LoRA": "there is no method 'LoRA'. Did you mean lora?",
    "epochs=3": "there is no setting 'epochs'. Did you mean training.epochs?",
    "method.rank=4": "there is no setting 'method.rank'. Did you mean method.r?",
    "model_path=DIR": "there is no setting 'model_path'. Did you mean model.path?",
    "seeds=3": "there is no setting 'seeds'. Did you mean -m seed=0,1,2? A sweep (-m) makes a run for each seed.",
    "seeds=[1,4]": "Did you mean -m seed=1,4?",
    "n_seeds=12": "Did you mean -m seed=range(12)?",
    "gpus=2": "The variable CUDA_VISIBLE_DEVICES=0 chooses a GPU",
    "task glue/cola": "cannot read 'task': settings are written key=value, as in task=glue/cola",
    "--task x": "there is no flag --task. Write settings as task=x",
    "--task=x --learning-rate 1e-3 -m": "there is no flag --task. Write settings as task=x training.learning_rate=1e-3",
    "--lr method=lora": "there is no flag --lr. Write settings as training.learning_rate=VALUE",
}


@pytest.mark.parametrize("words", WORDS)
def test_a_wrong_word_gets_the_suggestion_that_it_needs(words: str) -> None:
    code, _, err = called(*words.split())
    assert code == 2
    assert len(err.splitlines()) == 1, err
    assert WORDS[words] in err


def test_every_other_name_leads_to_a_setting_of_ours() -> None:
    known = {*known_keys()}
    assert all(known & {*names} for names in OTHER_NAMES.values())


def test_every_flag_of_hydras_is_tried() -> None:
    tried = {word for words, _, _ in FLAGS.values() for word in words}
    flags = {flag for action in get_args_parser()._actions for flag in action.option_strings}
    assert flags - tried == set()


COMPLETED = {
    "method=flexl": ["method=flexlora", "method=flexlora_released"],
    "task=glue/m": ["task=glue/mnli", "task=glue/mrpc"],
    "task=vtab/svhn method=lora training.warmup_s": ["training.warmup_steps="],
}


@pytest.mark.parametrize("line", COMPLETED)
def test_a_line_to_complete_is_completed(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_LINE", f"flexlora-run {line}")
    code, out, err = called("-sc", "query=bash")
    assert (code, out.split(), err) == (0, COMPLETED[line], "")


def test_an_error_of_our_own_is_a_traceback_and_no_line_of_hydras(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Ending:
        raise AssertionError

    monkeypatch.setattr(sys, "argv", ["flexlora-run", COLA, "method=lora"])
    with pytest.raises(AssertionError) as found:
        call_with_settings("flexlora-run", fails)
    assert refusal(found.value) is None
    assert refusal(ValueError("a bug")) is None


YAMLS = {
    "a circle": ("defaults: [/task/mine]\n", "the defaults lists of the YAML files name each other in a circle"),
    "no list": ("defaults: 3\n", "task/mine.yaml: Invalid defaults list in 'task/mine', defaults must be a list"),
    "a number in the list": ("defaults: [3]\n", "task/mine.yaml: Unsupported type in defaults : int"),
    "two keys in the list": ("defaults: [{a: 1, b: 2}]\n", "task/mine.yaml: In task/mine: Too many keys in default"),
    "a header": ("# @package a b\nname: x\n", "task/mine.yaml: Too many components in '@package a b'"),
    "a variable": (
        "name: ${oc.env:NO_SUCH_VARIABLE}\nfamily: glue\n", "task.name: KeyError raised while resolving interpolation",
    ),
    "a resolver": ("name: ${nope:x}\nfamily: glue\n", "task.name: Unsupported interpolation type nope"),
    "half an interpolation": ("name: ${\nfamily: glue\n", "task/mine.yaml: a value cannot be read: no viable"),
    "no number": ('name: !!int ""\n', "task/mine.yaml: a value cannot be read: "),
    "bytes": ("name: \udcff\n", "task/mine.yaml: a value cannot be read: 'utf-8' codec can't decode"),
    "code": (
        "# @package _global_\nhydra: {callbacks: {x: {_target_: os.system}}}\n",
        "task/mine.yaml: hydra.callbacks.x._target_ names code that Hydra would run: leave it out",
    ),
    "code of logging's": (
        '# @package _global_\nhydra: {job_logging: {formatters: {x: {"()": os.system}}}}\n',
        "task/mine.yaml: hydra.job_logging.formatters.x.() names code that Hydra would run",
    ),
    "code in a list": ("name: [a, {_target_: x}]\n", "task/mine.yaml: name[1]._target_ names code"),
    "code in a text": (
        "# @package _global_\nhydra: {callbacks: \"${oc.decode:'{x: {_target_: os.system}}'}\"}\n",
        "task/mine.yaml: hydra.callbacks names code",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", YAMLS)
def test_a_file_of_the_users_own_that_hydra_cannot_take(case: str, tmp_path: Path) -> None:
    text, message = YAMLS[case]
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "mine.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    code, _, err = called("--config-dir", str(tmp_path), "task=mine", "method=lora")
    assert code == 2
    assert len(err.splitlines()) == 1, err
    assert message in err


@pytest.mark.parametrize("name", ["pipe", "loop"])
def test_a_choice_that_is_no_regular_file_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    os.mkfifo(tmp_path / "task" / "pipe.yaml")
    (tmp_path / "task" / "loop.yaml").symlink_to("loop.yaml")
    code, _, err = called("--config-dir", str(tmp_path), f"task={name}")
    reason = {"pipe": "it is a named pipe, not a regular file", "loop": "Too many levels of symbolic links"}[name]
    assert (code, err) == (2, f"flexlora-run: {tmp_path}/task/{name}.yaml: {reason}\n")


def test_no_file_of_ours_names_code_for_hydra_to_run() -> None:
    """So that such a key can be refused in a `--config-dir`, whose files extend ours."""
    from flexlora.cli.own_yaml import check_own_yaml
    from flexlora.conf_path import conf_dir

    for file in conf_dir().rglob("*.yaml"):
        check_own_yaml(file)


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------

LIBRARIES = {"flexlora-run": "hydra", "flexlora-doctor": "omegaconf", "flexlora-report": "yaml"}


@pytest.mark.parametrize("program", LIBRARIES)
def test_ctrl_c_during_the_imports_is_one_line(program: str, tmp_path: Path) -> None:
    """In an interpreter of its own, as it is about imports: a library that is imported early interrupts the process."""
    (tmp_path / f"{LIBRARIES[program]}.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [BIN / program], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, timeout=60, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (130, "", f"{program}: interrupted\n")


def test_a_program_that_imports_a_command_keeps_its_ctrl_c() -> None:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


STARTS: dict[str, Callable[[], object]] = {
    "flexlora-run": lambda: call_with_settings("flexlora-run", lambda *_: Ending("done")),
    "flexlora-report": report_module.main,
}


@pytest.mark.parametrize("program", STARTS)
def test_ctrl_c_before_the_first_run_is_one_line(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(sys, "argv", [program])
    monkeypatch.setattr(command_module, "check_flags", interrupt)
    monkeypatch.setattr(report_module, "_parser", interrupt)
    with pytest.raises(SystemExit) as end:
        STARTS[program]()
    assert (end.value.code, capsys.readouterr().err) == (130, f"{program}: interrupted\n")


def test_an_interruption_while_a_program_imports_ends_it_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two processes says nothing."""
    from flexlora.cli import interrupt

    written: list[bytes] = []
    codes: list[int] = []
    monkeypatch.setattr(sys, "argv", ["/x/flexlora-doctor"])
    monkeypatch.setattr(os, "write", lambda _, text: written.append(text))
    monkeypatch.setattr(os, "_exit", codes.append)
    interrupt.leave_while_importing()
    assert signal.getsignal(signal.SIGINT) is interrupt._leave
    interrupt._leave(signal.SIGINT, None)
    monkeypatch.setenv("RANK", "1")
    interrupt._leave(signal.SIGINT, None)
    assert (written, codes) == ([b"flexlora-doctor: interrupted\n"], [130, 130])
    interrupt.raise_from_here()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_shells_background_job_stays_deaf_to_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    from flexlora.cli import interrupt

    monkeypatch.setattr(sys, "argv", ["/x/flexlora-run"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupt.leave_while_importing()
    interrupt.raise_from_here()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize(("program", "expected"), [("flexlora-run", "flexlora-run: warning: a b\n"), ("pytest", None)])
def test_a_warning_of_a_library_is_one_line(
    program: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flexlora.cli.terminal import warn_in_one_line

    before = warnings.formatwarning
    monkeypatch.setattr(warnings, "formatwarning", before)
    monkeypatch.setattr(sys, "argv", [program])
    warn_in_one_line()
    line = warnings.formatwarning("\n\ta\n b", UserWarning, "x.py", 3)
    assert line == (expected or before("\n\ta\n b", UserWarning, "x.py", 3))


def test_refused_words_raise_a_user_error() -> None:
    from flexlora.cli.flags import check_flags

    check_flags([COLA, "method=lora"])
    with pytest.raises(UserError, match=r"^-c and -i exclude each other"):
        check_flags(["-i", "-c", "job"])
