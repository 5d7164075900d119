"""`flexlora-report html`: one page that needs nothing else, at the width of a desk and of a phone."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from report_helpers import report, write_run, write_training

from flexlora.report.numbers import percent_axis
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
    words = ["method=flexlora", "task.data_dir=my data"]
    trained = write_run(root, method="flexlora", overrides=words, git={"sha": "a1b2c3d4e5f6"}, **fields)
    write_training(trained)
    (trained / "log.txt").write_text("first line\n" + "x" * 4000 + "\nlast </script> line\n")
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
            assert reference.startswith("#"), (tag, reference[:80])
        assert not any(name.startswith("on") for name in attributes)
    outside = re.sub(r'(<script type="text/plain" id="plotly">)[A-Za-z0-9+/=]+', r"\1", page)
    assert len(outside) < len(page) / 10
    assert not re.search(r"https?:|//[a-z]|@import|url\(", outside)
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"][1:] for tag, attributes in parsed.tags if tag == "a"]
    assert links == ids[:-2] == ["tables", "figures", "claims", "failures", "settings", "runs"]
    assert ids[-2:] == ["data", "plotly"]


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_a_run_has_its_facts_command_log_links_and_ranks(page, folder):
    data = data_of(page)
    (at,) = (i for i, run in enumerate(data["runs"]) if run["method"] == "flexlora")
    run = data["runs"][at]
    assert run["command"] == "flexlora-run method=flexlora 'task.data_dir=my data'"
    assert run["log"] == "last </script> line"
    assert (run["facts"]["commit"], run["facts"]["active parameters"]) == ("a1b2c3d4e5", "332k")
    assert run["history"] == [[1.0, 25.0, None, None], [2.0, 50.0, None, None]]
    assert run["span"] == pytest.approx([23.0, 52.0])
    record = (folder / run["path"] / "result.json").resolve()
    assert run["links"]["record"].endswith("local/glue/rte/small/flexlora/default/seed0/result.json")
    assert record.exists()
    assert set(data["ranks"]) == {str(at)}
    ranks = data["ranks"][str(at)]
    assert ranks["steps"][0] == 0
    assert len(ranks["frames"]) == len(ranks["steps"])
    assert {len(row) for frame in ranks["frames"] for row in frame} == {len(ranks["kinds"])}
    failed = next(run for run in data["runs"] if run["status"] == "failed")
    assert failed["differs"] == {"method.name": "adalora", "method.r": "2"}
    assert (failed["command"], failed["log"], list(failed["links"])) == (None, "", ["record"])


def test_curves_are_means_over_seeds_on_an_axis_that_does_not_exaggerate(page):
    (chart,) = data_of(page)["charts"]
    assert chart["name"] == "glue/rte · small, scale=local"
    lora = next(row for row in chart["rows"] if row["name"] == "lora")
    assert (lora["epochs"], lora["means"], lora["last"], lora["spread"], lora["seeds"]) == (
        [1.0, 2.0],
        [25.0, 50.0],
        50.0,
        25.0,
        3,
    )


@pytest.mark.parametrize(
    ("values", "spreads", "ends"),
    [
        ([90.0, 90.15], [], (87.575, 92.575)),
        ([99.9, 99.8], [0.5, 0.5], (95.0, 100.0)),
        ([0.2], [1.0], (0.0, 2.7)),
        ([-3.0, 40.0], [], (-6.44, 43.44)),
        ([120.0, 20.0], [], (12.0, 128.0)),
    ],
)
def test_a_percent_axis_spans_five_points_and_ends_at_100(values, spreads, ends):
    assert percent_axis(values, spreads) == pytest.approx(ends)


def test_a_percent_axis_of_nothing_has_no_ends():
    assert percent_axis([]) is None


def test_it_lists_runs_settings_failures_and_claims(page, folder):
    rows = Page(page).rows
    runs = {row[0]: row for row in rows if row and row[0].startswith("local/glue/rte/small")}
    assert runs["local/glue/rte/small/lora/default/seed2"][1:7] == ["done", "accuracy", "75.00", "75.00", "5", ""]
    assert ["local/glue/rte/small/adalora/default/seed0", "failed", REASON, ""] in rows
    assert any(row[1] == "broken" and "is not the record of a run" in row[2] for row in rows if len(row) == 4)
    assert ["method.r", "8 (4), 2 (1)"] in rows
    assert ["training.epochs", "2"] in rows
    assert not any(row[0] == "output_root" for row in rows)
    assert any(row[0].startswith("the shallow layers L0 grow") for row in rows)
    assert "<b>out of memory" not in page
    assert f"5 runs in {folder}" in page


def test_the_same_runs_give_the_same_page(page, folder, tmp_path):
    """Except for the command and the links, which depend on the page's own place."""
    report("html", folder, "--output", tmp_path / "again.html")
    again = (tmp_path / "again.html").read_text()
    assert f"flexlora-report html {folder} --output {tmp_path}/again.html" in again
    sections = [re.search(r"<nav>.*<dialog", text, re.DOTALL)[0] for text in (page, again)]
    assert sections[0] == sections[1]


def test_more_groups_than_a_page_shows_are_counted(tmp_path):
    for variant in ("a", "b", "c"):
        folder = write_run(tmp_path / "runs", method="flexlora", variant=variant, rank_events={"count": 1})
        write_training(folder, events=1, layers=1)
    assert report("html", tmp_path / "runs", "--output", tmp_path / "page.html").returncode == 0
    text = (tmp_path / "page.html").read_text()
    assert "The ranks of 1 more groups of seeds: flexlora-report figures" in text
    assert len(data_of(text)["ranks"]) == 2


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = """
<!doctype html><meta charset="utf-8"><body style="margin:0"><pre id="result"></pre>
<iframe id="frame" style="border:0" width="{width}" height="2000" srcdoc="{page}"></iframe>
<script>
const until = async (ready) => {{
  for (let i = 0; i < 200 && !ready(); i += 1) await new Promise(done => setTimeout(done, 50));
  return Boolean(ready());
}};
frame.onload = async () => {{
  const inside = frame.contentDocument, window = frame.contentWindow;
  const all = query => [...inside.querySelectorAll(query)];
  const column = (of, name) => [...of.tHead.rows[0].cells].findIndex(cell => cell.textContent === name);
  const shown = (of, at) => [...of.querySelectorAll('tbody tr:not(.aside):not([hidden])')]
    .map(row => row.cells[at].textContent);
  const sorted = (of, name) => {{
    of.tHead.rows[0].cells[column(of, name)].dispatchEvent(new window.KeyboardEvent('keydown', {{ key: 'Enter' }}));
    return shown(of, column(of, name));
  }};
  const table = inside.querySelector('#runs table'), scores = inside.querySelector('#tables table');
  const found = {{ width: window.innerWidth, before: shown(table, column(table, 'last')) }};
  Object.assign(found, {{ up: sorted(table, 'last'), down: sorted(table, 'last') }});
  Object.assign(found, {{ counts: sorted(scores, 'adapter params'), again: sorted(scores, 'adapter params') }});

  const area = table.parentElement, box = area.getBoundingClientRect();
  area.scrollLeft = 1e6;
  const first = table.tBodies[0].rows[0].cells[0].getBoundingClientRect();
  const last = table.tHead.rows[0].lastElementChild.getBoundingClientRect();
  Object.assign(found, {{ sticky: Math.abs(first.left - box.left), reached: last.right - box.right,
    focus: area.tabIndex, room: first.width / box.width }});

  const search = inside.querySelector('#runs input[type=search]'), tools = search.parentElement;
  search.value = 'LORA seed2';
  search.dispatchEvent(new window.Event('input'));
  found.search = [shown(table, 0), tools.querySelector('[aria-live]').textContent];
  search.value = '';
  search.dispatchEvent(new window.Event('input'));
  tools.querySelector('input[type=checkbox]').click();
  found.hidden = [...table.rows].every(row => row.cells[1].hidden && !row.cells[2].hidden);

  inside.querySelector('#figures').scrollIntoView();
  found.drawn = await until(() => all('#figures .main-svg').length > 5);
  found.wide = all('h1, h2, h3, p, ul, nav, div[role], figure, dl')
    .filter(part => part.getBoundingClientRect().right > window.innerWidth + 1).map(part => part.outerHTML);
  found.scroll = inside.documentElement.scrollWidth;

  all('tr[data-method=flexlora] button')[0].click();
  found.list = all('dialog li').map(item => item.textContent);
  inside.querySelector('dialog li button').click();
  await until(() => all('dialog .main-svg').length > 3);
  found.dialog = all('dialog h2, dialog h3').map(head => head.textContent);
  found.fits = inside.querySelector('dialog').getBoundingClientRect().right <= window.innerWidth;
  const slider = inside.querySelector('dialog input[type=range]'), play = slider.previousElementSibling;
  play.click();
  found.played = await until(() => slider.value === '2');
  play.click();
  const map = inside.querySelector('dialog input[type=range]').closest('div').querySelector('.plot');
  found.hover = map.data[0].hovertemplate;
  result.textContent = JSON.stringify(found);
}};
onunhandledrejection = event => {{ result.textContent = JSON.stringify({{ error: String(event.reason.stack) }}); }};
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to look with")
@pytest.mark.parametrize("width", [1280, 400])
def test_in_a_browser_everything_is_reached(page, tmp_path, width):
    """Sorting with the keyboard, the fixed column, search, columns, figures, and from a row to a run to its ranks.

    A browser is started because only it lays out the page and runs its script.
    """
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
    assert "error" not in found, found
    assert (found["width"], found["wide"]) == (width, [])
    assert found["scroll"] <= width
    assert found["up"] == ["25.00", "50.00", "50.00", "75.00", ""]
    assert found["down"] == ["75.00", "50.00", "50.00", "25.00", ""]
    assert found["counts"] == ["332k", "1.33M", "–"]
    assert found["again"] == ["1.33M", "332k", "–"]
    assert sorted(found["before"]) == sorted(found["up"])
    assert found["sticky"] <= 1
    assert found["reached"] <= 1
    assert found["focus"] == 0
    assert found["room"] < 0.55
    assert found["search"] == [["local/glue/rte/small/lora/default/seed2"], "1 of 5 rows"]
    assert found["hidden"]
    assert found["drawn"]
    assert found["list"] == ["local/glue/rte/small/flexlora/default/seed0 accuracy 50.00"]
    assert found["dialog"] == [
        "local/glue/rte/small/flexlora/default/seed0",
        "Command that repeats it",
        "End of its log",
        "Curves",
        "Ranks",
    ]
    assert found["fits"]
    assert found["played"]
    assert found["hover"].startswith("%{y} %{x}: rank %{z}")


def brightness(colour):
    """The relative luminance of `#rgb` or `#rrggbb`, as WCAG defines it."""
    digits = colour.lstrip("#")
    pairs = re.findall("..", digits if len(digits) == 6 else "".join(2 * digit for digit in digits))
    parts = [int(pair, 16) / 255 for pair in pairs]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_text_has_enough_contrast(page, mode):
    """WCAG AA asks for 4.5 : 1."""
    palettes = [dict(re.findall(r"--(\w+): (#\w+);", block)) for block in re.findall(r":root \{ (--.*?)\}", page)]
    assert len(palettes) == 2
    colours = palettes[mode]
    for back in ("back", "field"):
        for text in ("ink", "quiet", "link"):
            low, high = sorted(brightness(colours[name]) for name in (back, text))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (back, text)


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
