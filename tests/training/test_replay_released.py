"""The replay of what the released code did: on recordings of the released code itself, and on one made by hand."""

import json
import logging
import shutil
import sys

import pytest
import torch
from marks import slow_but
from trace_helpers import FIRST, SECOND, SETTINGS, write_trace

from flexlora.testing.replay_released import TOLERANCE, Replay, main, replay

RECORDINGS = {"S": 13, "B": 8}


@pytest.fixture(scope="module")
def bert(tmp_path_factory, tiny_bert):
    """`tiny_bert` without dropout."""
    folder = shutil.copytree(tiny_bert, tmp_path_factory.mktemp("models") / "bert")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def hand_made(tmp_path_factory, bert):
    folder = tmp_path_factory.mktemp("recording")
    write_trace(folder, bert)
    return folder


@pytest.mark.parametrize("name", slow_but(["B"], RECORDINGS))
def test_the_released_codes_own_trainings_are_reproduced(shared, name):
    """Every event, every final rank and every loss. S takes over half a minute."""
    recording, model = shared / "data" / "released_trace" / name, shared / "models" / "tiny-deberta-trace"
    if not recording.is_dir() or not model.is_dir():
        pytest.skip(f"the shared folder has no {recording.name} or no {model.name}")
    said = []
    found = replay(str(recording), str(model), say=said.append)
    assert found.identical, said
    assert len(found.events) == RECORDINGS[name]
    assert len(found.ranks) == 24
    assert found.loss_difference <= TOLERANCE == 3e-5
    assert found.parameter_difference < 1e-2  # in the order in which the released code has the directions
    assert len(said) == RECORDINGS[name]


@pytest.mark.slow
def test_torchs_adamw_reproduces_the_first_event_at_most(shared):
    """The place of eps decides the events."""
    model = shared / "models" / "tiny-deberta-trace"
    if not model.is_dir():
        pytest.skip(f"the shared folder has no {model.name}")
    recording = shared / "data" / "released_trace" / "B"
    found = replay(str(recording), str(model), {"eps_before_correction": False})
    assert sum(found.events.values()) <= 1
    assert not all(found.ranks.values())
    assert found.loss_difference > 0.1


@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_a_recording_made_by_hand_is_replayed_exactly(tmp_path, bert, penalty):
    write_trace(tmp_path, bert, penalty)
    said = []
    found = replay(str(tmp_path), str(bert), say=said.append)
    assert said == ["step 3: 1 directions go, 1 come: identical", "step 5: 1 directions go, 1 come: identical"]
    assert found.identical
    assert found.events == {3: True, 5: True}
    assert found.ranks == {FIRST: True, SECOND: True}
    assert found.loss_difference < 1e-5
    assert found.parameter_difference < 1e-6  # the recorded new vectors are in it


def changed(folder, target, change):
    """A copy of the recording with another trace.json."""
    content = json.loads((folder / "trace.json").read_text(encoding="utf-8"))
    change(content)
    for name in ("settings.json", "tensors.safetensors"):
        (target / name).write_bytes((folder / name).read_bytes())
    (target / "trace.json").write_text(json.dumps(content), encoding="utf-8")
    return target


def other_position(trace):
    trace["events"][0]["moves"][FIRST]["gone"] = [0]


def other_budget(trace):
    trace["events"][0]["b"] = 2


def no_growth(trace):
    trace["events"][0]["moves"].pop(SECOND)


def other_ranks(trace):
    trace["events"][0]["ranks"][SECOND] = 5


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (other_position, f"{FIRST} loses [1], gains 0; recorded [0], 0"),
        (no_growth, f"{SECOND} loses [], gains 1; recorded [], 0"),
        (other_budget, "b(t) or the ranks differ"),
        (other_ranks, "b(t) or the ranks differ"),
    ],
)
def test_another_event_is_told_and_not_counted(hand_made, tmp_path, bert, change, line):
    said = []
    found = replay(str(changed(hand_made, tmp_path, change)), str(bert), say=said.append)
    assert found.events == {3: False, 5: True}
    assert not found.identical
    assert said[0] == f"step 3: 1 directions go, 1 come: {line}"


def test_other_steps_ranks_and_losses_are_found(hand_made, tmp_path, bert):
    def change(trace):
        trace["events"][1]["g"] = 5  # one step later
        trace["steps"][7]["loss"] += 0.5
        trace["final"].pop(f"{FIRST}.lora_E")
        trace["final"][f"{FIRST}.lora_E"] = {"tensor": f"init/{FIRST}.lora_E"}

    said = []
    found = replay(str(changed(hand_made, tmp_path, change)), str(bert), say=said.append)
    assert said[1] == "step 5: the recording has no event here"
    assert (found.events, found.extra) == ({3: True, 6: False}, [5])
    assert found.ranks == {FIRST: False, SECOND: True}
    assert found.loss_difference == pytest.approx(0.5, abs=1e-4)
    assert found.parameter_difference == torch.inf
    assert str(found) == (
        "1 of 2 events (1 more happened here) and 1 of 2 final ranks identical, largest loss difference 5.0e-01"
    )


def test_the_last_line():
    found = Replay(dict.fromkeys(range(13), True), [], {"a": True}, 2.14e-5, 0.0)
    assert str(found) == "13 of 13 events and all final ranks identical, largest loss difference 2.1e-05"
    assert found.identical
    assert not Replay({1: True}, [2], {"a": True}, 0.0, 0.0).identical
    assert not Replay({1: True}, [], {"a": False}, 0.0, 0.0).identical
    assert not Replay({1: False}, [], {"a": True}, 0.0, 0.0).identical


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["replay_released.py", *map(str, arguments)])
        code = main()
        out, err = capsys.readouterr()
        return code, out.splitlines(), err.splitlines()

    log = logging.getLogger("flexlora")
    level = log.level
    yield run
    log.setLevel(level)


def test_the_command_says_each_event_and_ends_with_the_result(command, hand_made, bert):
    code, out, err = command(hand_made, "--model", bert)
    assert (code, err) == (0, [])
    assert out[-1].startswith("2 of 2 events and all final ranks identical, largest loss difference ")
    assert out[-2].startswith("final parameters: largest difference ")
    assert len(out) == 4
    code, out, _ = command(hand_made, "--model", bert, "--tolerance", "0")
    assert code == 1
    code, out, _ = command(hand_made, "--model", bert, "--set", "direction=prune_only")
    assert code == 1
    assert out[-1].startswith("0 of 2 events and 1 of 2 final ranks identical")


BROKEN = {
    "no folder": (lambda folder: folder / "none", "FOLDER: there is no folder"),
    "a file is missing": ("trace.json", None, "is not a recording of the released code: "),
    "no JSON": ("settings.json", "{", "is not a recording of the released code: "),
    "no object": ("settings.json", "[]", "is not a recording of the released code: "),
    "a setting is missing": (
        "settings.json",
        json.dumps({"r": 8}),
        "is not a whole recording: 'lora_alpha' is missing",
    ),
    "another number of steps": (
        "settings.json",
        json.dumps(SETTINGS | {"steps": 9}),
        "trace.json has 8 steps, but settings.json has 9",
    ),
    "tensors are cut": ("tensors.safetensors", "x", "is not a recording of the released code: "),
    "a tensor is missing": ("trace.json", json.dumps({"steps": {"tensor": "none"}}), "'none' is missing"),
    "windows without an event": ("settings.json", json.dumps(SETTINGS | {"deltaT": 9}), "no rank event is possible"),
    "no such module": (
        "settings.json",
        json.dumps(SETTINGS | {"target_modules": ["query", "none"]}),
        "none match no module",
    ),
    "another model": (
        "settings.json",
        json.dumps(SETTINGS | {"target_modules": ["key"]}),
        "the recording is of another model than --model: bert.encoder.layer.0.attention.self.key",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_replayed_is_one_line(command, hand_made, tmp_path, bert, case):
    folder = changed(hand_made, tmp_path, lambda trace: None)
    *how, line = BROKEN[case]
    if len(how) == 1:
        folder = how[0](folder)
    elif how[1] is None:
        (folder / how[0]).unlink()
    else:
        (folder / how[0]).write_text(how[1], encoding="utf-8")
    code, out, err = command(folder, "--model", bert)
    assert (code, out, len(err)) == (2, [], 1)
    assert line in err[0]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--set", "nonsense"], "--set nonsense: write NAME=VALUE"),
        (["--set", "none=1"], "there is no setting 'method.none'"),
        (["--set", "prune_by=[1"], "--set prune_by=[1: "),
        (["--set", "eps_before_correction=maybe"], "method.eps_before_correction: 'maybe' is not bool"),
    ],
)
def test_a_wrong_argument_is_one_line(command, hand_made, bert, arguments, line):
    code, out, err = command(hand_made, "--model", bert, *arguments)
    assert (code, out, len(err)) == (2, [], 1)
    assert line in err[0]


def test_a_model_with_dropout_is_refused(command, hand_made, tiny_bert):
    code, out, err = command(hand_made, "--model", tiny_bert)
    assert (code, out, len(err)) == (2, [], 1)
    assert "has dropout, which is random: set it to 0 in its config.json" in err[0]


def test_a_model_that_is_none_is_one_line(command, hand_made, tmp_path):
    code, out, err = command(hand_made, "--model", tmp_path)
    assert (code, out, len(err)) == (2, [], 1)
    assert "has no config.json" in err[0]
