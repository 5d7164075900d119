"""`flexlora-report watch` shows runs while they train, on this machine only, and ends cleanly."""

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from report_helpers import report, write_run

from flexlora.cli import watch
from flexlora.report.live import as_html, as_lines, stamp_of, unfinished
from flexlora.results.collect import collect

NAME = "local/glue/cola/small/flexlora/default/seed1"


def begin(root: Path) -> Path:
    """A run that is in its third epoch."""
    folder = root / NAME
    folder.mkdir(parents=True)
    config = {
        "scale": "local", "seed": 1, "data_seed": 1, "method": {"name": "flexlora"},
        "task": {"name": "glue/cola", "main_metric": "accuracy"}, "training": {"epochs": 20, "max_steps": None},
    }  # fmt: skip
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config), encoding="utf-8")
    return folder


def add(folder: Path, name: str, **row: object) -> None:
    with (folder / name).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


@pytest.fixture
def running(tmp_path: Path) -> Path:
    write_run(tmp_path, 0.5)
    folder = begin(tmp_path)
    for step in (10, 20, 30):
        add(folder, "metrics.jsonl", kind="train", step=step, epoch=step / 10, loss=1 / step)
        add(folder, "metrics.jsonl", kind="eval", step=step, epoch=step / 10, accuracy=0.5 + step / 100)
        add(folder, "ranks.jsonl", step=step, ranks={"a": step, "b": 2})
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind": "train", "step": 4')  # a line that is being written
    return tmp_path


def test_a_run_that_trains_has_its_step_score_and_ranks(running: Path) -> None:
    (live,) = unfinished(collect(running).runs, running, now=(running / NAME / "ranks.jsonl").stat().st_mtime + 7)
    assert (live.name, live.step, live.epoch, live.spread) == (NAME, 30, "3.00 of 20", "2–30")
    assert live.scores == [(10, 0.6), (20, 0.7), (30, 0.8)]
    assert live.ranks == [(10, 6.0), (20, 11.0), (30, 16.0)]
    (line,) = as_lines([live])
    assert line.startswith(f"{NAME}  step 30  epoch 3.00 of 20  loss 0.0333  accuracy 0.8000  ranks 2–30  wrote ")
    page = as_html([live])
    assert page.count("<svg") == 2
    assert "accuracy by step: 0.6 to 0.8" in page


def test_a_run_without_a_line_and_one_that_is_damaged_are_shown_too(tmp_path: Path) -> None:
    folder = begin(tmp_path)
    assert next(as_lines(unfinished(collect(tmp_path).runs, tmp_path))).startswith(f"{NAME}  wrote ")
    (folder / "metrics.jsonl").write_text("[]\n<script>\n", encoding="utf-8")
    (folder / "ranks.jsonl").write_text('{"step": "x", "ranks": {"a": "<b>"}}\n', encoding="utf-8")
    assert "<script>" not in as_html(unfinished(collect(tmp_path).runs, tmp_path))


def test_the_stamp_changes_with_every_line_and_with_the_end(running: Path) -> None:
    seen = [stamp_of(running)]
    assert stamp_of(running) == seen[0]
    add(running / NAME, "metrics.jsonl", kind="train", step=40)
    seen.append(stamp_of(running))
    add(running / NAME, "ranks.jsonl", step=40)
    seen.append(stamp_of(running))
    (running / NAME / "result.json").write_text("{}", encoding="utf-8")
    seen.append(stamp_of(running))
    assert len(set(seen)) == 4


def test_text_once_shows_the_unfinished_run_and_the_table(running: Path) -> None:
    result = report("watch", running, "--text", "--once")
    assert result.returncode == 0, result.stderr
    assert f"{NAME}  step 30" in result.stdout
    assert "GLUE" in result.stdout
    assert report(running, "--watch", "--text", "--once").stdout[8:] == result.stdout[8:]


@pytest.fixture
def served(running: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, int, list[int]]]:
    """The folder, the port of its page, and the list to which each drawing of the page adds an item."""
    drawn: list[int] = []

    def page(root: Path) -> str:
        drawn.append(1)
        return f"<html><head></head><body>{len(collect(root).runs)} runs</body></html>"

    server = watch._Server(running, 0, 1.0, page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield running, server.server_port, drawn
    server.shutdown()
    thread.join()
    server.server_close()


def ask(port: int, path: str, method: str = "GET", host: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, headers={"Host": host or f"127.0.0.1:{port}"})
    answer = connection.getresponse()
    content = answer.read().decode()
    connection.close()
    return answer.status, content


def test_the_page_is_drawn_again_only_when_a_run_has_written(served: tuple[Path, int, list[int]]) -> None:
    root, port, drawn = served
    status, page = ask(port, "/")
    assert status == 200
    assert f'!== "{stamp_of(root)}") location.reload()' in page
    assert page.index("Unfinished runs") < page.index("2 runs")
    assert ask(port, "/")[1] == page
    assert len(drawn) == 1
    add(root / NAME, "metrics.jsonl", kind="eval", step=40, epoch=4.0, accuracy=0.9)
    assert ask(port, "/stamp") == (200, stamp_of(root))
    assert ask(port, "/")[1] != page
    assert len(drawn) == 2


def test_the_server_reads_logs_of_runs_and_nothing_else(served: tuple[Path, int, list[int]]) -> None:
    root, port, _ = served
    (root / NAME / "secret.txt").write_text("x")
    (root.parent / "log.txt").write_text("outside")
    (root / NAME / "log.txt").symlink_to(root.parent / "log.txt")
    assert ask(port, f"/{NAME}/config.yaml")[0] == 200
    for path in (
        f"/{NAME}/secret.txt",
        f"/{NAME}/log.txt",
        "/../log.txt",
        "/%2e%2e/log.txt",
        f"/{NAME}",
        "//etc/passwd",
    ):
        assert ask(port, path) == (404, "there is no such file\n"), path
    assert ask(port, "/", host="evil.example:80")[0] == 403
    assert ask(port, "/", method="HEAD") == (200, "")
    assert ask(port, "/", method="POST")[0] == 501


def test_wrong_words_are_one_line(served: tuple[Path, int, list[int]]) -> None:
    root, port, _ = served
    for words, message in {
        (root / "nowhere",): "there is no folder ",
        (root, "--port", port): f"port {port}: Address already in use: give another one with --port, 0 for any",
        (root, "--port", 70000): "--port must be between 0 and 65535, not 70000",
        (root, "--every", "nan"): "--every must be between 0.1 and 3600 seconds, not nan",
        (root, "--evry", 1): "unrecognized arguments: --evry 1",
    }.items():
        result = report("watch", *words)
        assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
        assert message in result.stderr


@pytest.mark.parametrize("words", [("--port", 0), ("--text",)])
def test_ctrl_c_ends_it_without_a_traceback(
    running: Path, words: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch._Server, "serve_forever", interrupt)
    monkeypatch.setattr(watch.time, "sleep", interrupt)
    result = report("watch", running, *words)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("ended\n")


def test_a_folder_without_runs_waits_for_the_first(tmp_path: Path) -> None:
    server = watch._Server(tmp_path, 0, 1.0, lambda root: "")
    assert "No run has begun yet." in server.whole_page()
    server.server_close()
