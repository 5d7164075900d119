"""Commonsense170K from the hub: what is read of a repository, the commit in the record, and every trouble a line."""

import shutil

import pytest
from commonsense_helpers import write_llama, write_rows
from hub_helpers import COMMIT, Repository, hub

from flexlora.results.record import read_record

LINES = {
    "gated": "is not in the local cache and access to it is restricted",
    "missing": "is not in the local cache and the hub has no such dataset, or it is private",
    "refused": "is not in the local cache and the hub answers with error 403",
    "broken": "is not in the local cache and the hub answers with error 500",
    "silent": "is not in the local cache and the request to the hub failed (ReadTimeout: timed out)",
    "cut": "peer closed connection without sending complete message body",
}
HINT = "; task.data_dir=DIR takes a folder in the same layout"


@pytest.mark.slow
def test_a_repository_is_read_at_its_commit_and_then_from_the_cache(flexlora_run, tmp_path):
    rows = write_rows(tmp_path / "rows")
    (rows / "dataset" / "boolq" / "others.json").write_text("no rows, and nothing that is asked for")
    half = tmp_path / "half"
    shutil.copytree(rows, half)
    (half / "dataset" / "winogrande" / "test.json").unlink()
    run = ["-m", "task=commonsense170k", "method=lora", "model=local", f"model.path={write_llama(tmp_path / 'llama')}"]
    run += ["task.evaluation_mode=likelihood", "training.precision=fp32", "training.max_steps=1"]
    run += ["variant=hub", "training.batch_size=8", f"output_root={tmp_path / 'out'}"]
    both, home = "task.test_sets=[boolq,winogrande]", tmp_path / "home"

    troubled = {trouble: Repository(rows, trouble) for trouble in LINES}
    names = ",".join(f"org/{name}" for name in [*troubled, "half", "good"])
    with hub(home, good=Repository(rows), half=Repository(half), **troubled) as variables:
        result = flexlora_run(*run, both, f"task.hub_path={names}", **variables, HF_HUB_ETAG_TIMEOUT="2")
    assert "8 runs: 7 refused, 1 done" in result.stdout, result.stdout + result.stderr
    *lines, last = result.stderr.strip().splitlines()
    assert len(lines) == len(LINES), result.stderr
    for (trouble, expected), line in zip(LINES.items(), lines, strict=True):
        assert line.startswith("flexlora-run: ")
        assert f"org/{trouble}" in line
        assert expected in line
        assert line.endswith(HINT)
    neither = "dataset/winogrande/test.json nor winogrande/test.json"
    assert last == f"flexlora-run: task.hub_path: org/half has neither {neither}{HINT}"
    (file,) = (tmp_path / "out").rglob("result.json")
    record = read_record(file)
    assert {key: record.data[key] for key in ("source", "path", "revision")} == {
        "source": "hub",
        "path": "org/good",
        "revision": COMMIT,
    }
    assert record.data["sha256"].keys() == {
        "commonsense_170k.json",
        "dataset/boolq/test.json",
        "dataset/winogrande/test.json",
    }
    assert not list(home.rglob("others.json"))

    # Without a network: what is there is enough, also of a repository that lacks some, and what is not is a line each.
    offline = ["seed=1", "task.hub_path=org/half,org/never,org/good"]
    result = flexlora_run(*run, both, *offline, HF_HOME=str(home), HF_HUB_OFFLINE="1")
    assert "3 runs: 2 refused, 1 done" in result.stdout, result.stdout + result.stderr
    reason = f"is not in the local cache and the hub cannot be reached (or HF_HUB_OFFLINE=1 is set){HINT}"
    assert result.stderr.strip().splitlines() == [
        f"flexlora-run: winogrande/test.json of org/half {reason}",
        f"flexlora-run: org/never {reason}",
    ]
