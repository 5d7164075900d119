"""`flexlora-report html`: one page that needs nothing else, at the width of a desk and of a phone."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from report_helpers import report, write_run, write_training

from flexlora.results.predictions import Predictions

REASON = "RuntimeError: <b>out of memory</b> & more"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags with their attributes, the text of each table's cells, and tags that are closed in another order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        if {"td", "th"} & {*self.open}:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    common = {"scores": ("accuracy",), "main_metric": "accuracy", "task": "rte"}
    history = [{"step": i, "epoch": float(i), "accuracy": i / 4, "eval_loss": {}} for i in (1, 2)]
    for seed, value in ((0, 0.5), (1, 0.25), (2, 0.75)):
        write_run(root, value, method="lora", seed=seed, history=history, **common)
    small = {"adapter_active": 332_000, "head": 1000}
    fields = {"rank_events": {"count": 5}, "history": history, "parameters": small, **common}
    write_training(write_run(root, method="flexlora", **fields))
    config = {"method": {"name": "adalora", "r": 2}, "training": {"epochs": 2}, "output_root": "elsewhere"}
    write_run(root, None, method="adalora", status="failed", error=REASON, config=config, **common)
    broken = root / "broken" / "seed0"
    broken.mkdir(parents=True)
    (broken / "result.json").write_text("{")
    return root


@pytest.fixture(scope="module")
def page(folder, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "sweep.html"
    result = report("html", folder, "--output", file)
    assert result.returncode == 1, result.stderr  # for the broken record
    assert "5 runs" in result.stdout
    return file.read_text(encoding="utf-8")


def test_its_tags_are_closed_and_it_refers_to_nothing_outside(page):
    parsed = Page(page)
    assert parsed.wrong == parsed.open == []
    for tag, attributes in parsed.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        for name in ("src", "href", "srcset", "action", "data"):
            reference = attributes.get(name, "#")
            assert reference.startswith(("#", "data:image/svg+xml;base64,")), (tag, reference[:80])
        assert not any(name.startswith("on") for name in attributes)
    outside = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", outside)
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"][1:] for tag, attributes in parsed.tags if tag == "a"]
    assert links == ids == ["tables", "figures", "claims", "failures", "settings", "runs"]


def test_its_figures_are_whole_and_refer_to_nothing_outside(page):
    import base64

    images = [attributes for tag, attributes in Page(page).tags if tag == "img"]
    assert len(images) == 6
    for image in images:
        assert image["alt"]
        figure = ElementTree.fromstring(base64.b64decode(image["src"].split(",", 1)[1]))
        references = [v for e in figure.iter() for k, v in e.attrib.items() if k.endswith("href")]
        assert all(value.startswith(("#", "data:image/png;base64,")) for value in references)


def test_it_lists_runs_settings_failures_and_claims(page, folder):
    rows = Page(page).rows
    runs = {row[0]: row for row in rows if row and row[0].startswith("local/glue/rte/small")}
    assert runs["local/glue/rte/small/lora/default/seed2"][1:7] == ["done", "accuracy", "75.00", "75.00", "5", ""]
    assert ["local/glue/rte/small/adalora/default/seed0", "failed", REASON] in rows
    assert any(row[1] == "broken" and "is not the record of a run" in row[2] for row in rows if len(row) == 3)
    assert ["method.r", "8 (4), 2 (1)"] in rows
    assert ["training.epochs", "2"] in rows
    assert not any(row[0] == "output_root" for row in rows)
    assert any(row[0].startswith("the shallow layers L0 grow") for row in rows)
    assert "<b>out of memory" not in page
    assert f"5 runs in {folder}" in page


def test_the_same_runs_give_the_same_page(page, folder, tmp_path):
    report("html", folder, "--output", tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == page


def test_more_groups_than_a_page_shows_are_counted(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("flexlora.report.figures.draw_sweeps", lambda runs: [])
    monkeypatch.setattr("flexlora.report.figures.draw_allocations", lambda groups: drawn.extend(groups) or [])
    for variant in ("a", "b", "c"):
        folder = write_run(tmp_path / "runs", method="flexlora", variant=variant, rank_events={"count": 1})
        write_training(folder, events=1, layers=1)
    assert report("html", tmp_path / "runs", "--output", tmp_path / "page.html").returncode == 0
    text = (tmp_path / "page.html").read_text()
    assert "The ranks of 1 more groups of seeds: flexlora-report figures" in text
    assert len(drawn) == 2


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = """
<!doctype html><meta charset="utf-8"><body style="margin:0"><pre id="result"></pre>
<iframe id="frame" style="border:0" width="{width}" height="2000" srcdoc="{page}"></iframe>
<script>
frame.onload = () => {{
  const inside = frame.contentDocument, window = frame.contentWindow;
  const column = (of, name) => [...of.tHead.rows[0].cells].findIndex(cell => cell.textContent === name);
  const shown = (of, at) => [...of.querySelectorAll('tbody tr:not(.aside)')].map(row => row.cells[at].textContent);
  const sorted = (of, name) => {{
    of.tHead.rows[0].cells[column(of, name)].click();
    return shown(of, column(of, name));
  }};
  const table = inside.querySelector('#runs table'), scores = inside.querySelector('#tables table');
  const wide = [...inside.body.querySelectorAll('h1, h2, h3, p, ul, nav, div, figure')]
    .filter(part => part.getBoundingClientRect().right > window.innerWidth + 1).map(part => part.outerHTML);
  const images = [...inside.images].map(image => image.complete && image.naturalWidth > 0);
  const before = shown(table, column(table, 'last'));
  const up = sorted(table, 'last'), down = sorted(table, 'last');
  const counts = sorted(scores, 'adapter params'), again = sorted(scores, 'adapter params');
  const found = {{ width: window.innerWidth, scroll: inside.documentElement.scrollWidth, wide, images, before, up,
    down, counts, again, sizes: [...inside.images].map(image => image.getBoundingClientRect().width) }};
  result.textContent = JSON.stringify(found);
}};
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to look with")
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser_nothing_runs_over_and_a_click_sorts(page, tmp_path, width):
    (tmp_path / "probe.html").write_text(PROBE.format(width=width, page=html.escape(page, quote=True)))
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--window-size=1400,2000")
    words = [
        CHROMIUM,
        *options,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        (tmp_path / "probe.html").as_uri(),
    ]
    result = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    match = re.search(r'<pre id="result">(.*?)</pre>', result.stdout, re.DOTALL)
    found = json.loads(html.unescape(match[1]))
    assert found["width"] == width
    assert found["scroll"] <= width
    assert found["wide"] == []
    assert found["images"] == [True] * 6
    if width > 700:
        assert max(found["sizes"]) <= width
    assert found["up"] == ["25.00", "50.00", "50.00", "75.00", ""]
    assert found["down"] == ["75.00", "50.00", "50.00", "25.00", ""]
    assert found["counts"] == ["332k", "1.33M", "–"]
    assert found["again"] == ["1.33M", "332k", "–"]
    assert sorted(found["before"]) == sorted(found["up"])


def test_the_tables_are_sorted_by_the_figures_themselves(tmp_path):
    """What is no figure has none, a word that begins with a number neither."""
    for seed, value in enumerate((0.5, 0.25, 0.625)):
        write_run(tmp_path / "runs", value, seed=seed, scale="paper", model="deberta_v3_base")
    write_run(tmp_path / "runs", task="rte", method="flexlora", scale="paper", model="deberta_v3_base")
    report("html", tmp_path / "runs", "--output", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert '<td data-value="1327680">1.33M</td>' in text
    assert '<td data-value="1300000">1.3M</td>' in text  # as the paper prints it
    assert '<td data-value="45.83333333">45.8 ± 19.1 (3)</td>' in text
    assert '<td data-value="">1/8</td>' in text


def test_its_tables_have_the_paired_test_and_intervals(tmp_path):
    labels = [0, 1] * 30
    for wrong, method in ((10, "lora"), (20, "flexlora")):
        answers = [1 - label if i < wrong else label for i, label in enumerate(labels)]
        common = {"task": "rte", "method": method, "scores": ("accuracy",), "main_metric": "accuracy"}
        folder = write_run(tmp_path / "runs", 1 - wrong / 60, **common)
        Predictions(folder).keep(5, {"validation": answers}, {"validation": labels}, best=True)
    words = ("html", tmp_path / "runs", "--output", tmp_path / "page.html")
    assert report(*words).returncode == 0
    assert "interval" not in (tmp_path / "page.html").read_text()
    assert report(*words, "--against", "lora", "--intervals").returncode == 0
    page = Page((tmp_path / "page.html").read_text())
    names = [row[0] for row in page.rows if row]
    assert names.count("95 % interval") == 3  # of both figures, and of their difference
    (difference,) = (row for row in page.rows if row and row[0] == "less lora's")
    assert "-16.7 (1)" in difference
    refused = report(*words, "--against", "lorra")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == (
        "flexlora-report: no run of method 'lorra'. Did you mean lora? There are: flexlora, lora.\n"
    )
    for option in ("--against METHOD", "--intervals"):
        assert option in report("html", "--help").stdout
