"""`flexlora-report figures`: every figure of a sweep, whose parts neither overlap nor leave the page."""

import itertools
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import rgb_to_hsv, to_rgb
from matplotlib.text import Text
from report_helpers import KINDS, report, write_run, write_training

from flexlora.report import figures
from flexlora.report.figures.style import COLOURS, light_to_dark, look
from flexlora.report.seed_groups import allocated
from flexlora.results.collect import collect

EVENTS = {"count": 22}
LLAMA = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj")


def history(value):
    return [{"step": 10 * i, "epoch": float(i), "accuracy": value * i / 3, "eval_loss": {}} for i in (1, 2, 3)]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """FlexLoRA of 12 and of 32 layers, and two methods with three seeds on two tasks."""
    root = tmp_path_factory.mktemp("sweep")
    common = {"scores": ("accuracy",), "main_metric": "accuracy"}
    for model, layers, kinds in (("deep12", 12, KINDS), ("deep32", 32, LLAMA)):
        folder = write_run(root, method="flexlora", model=model, rank_events=EVENTS, history=history(0.6), **common)
        write_training(folder, layers=layers, events=22, kinds=kinds)
    for task, method, seed in itertools.product(("rte", "sst2"), ("lora", "linear"), range(3)):
        value = 0.5 + seed / 10
        active = {"adapter_active": 0 if method == "linear" else 300_000}
        write_run(root, value, task=task, method=method, model="deep12", seed=seed, history=history(value),
                  parameters=active, **common)  # fmt: skip
    return root


@pytest.fixture(scope="module")
def drawings(sweep):
    runs = collect(sweep).runs
    return {d.name: d for d in (*figures.draw_sweeps(runs), *figures.draw_allocations(allocated(runs)[0]))}


def test_there_is_each_figure_of_each_group(drawings):
    expected = {f"{name}_local_{model}" for name in figures.OF_SWEEPS for model in ("deep12", "deep32")}
    groups = ("local_deep12_glue-cola_flexlora", "local_deep32_glue-cola_flexlora")
    assert drawings.keys() == expected | {f"{name}_{group}" for name in figures.OF_ALLOCATIONS for group in groups}


def test_no_words_overlap_or_leave_the_page(drawings):
    for drawing in drawings.values():
        figure = drawing.figure
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        page = figure.bbox
        texts = [*figure.texts]
        for axes in figure.axes:
            texts += [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
            for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
                texts += [t.label1 for t in axis.get_major_ticks() if _inside(axes, axis, t)]
        shown = [*(text for text in texts if text.get_text() and text.get_visible()), *figure.legends]
        boxes = [(part, part.get_window_extent(renderer)) for part in shown]
        for part, box in boxes:
            inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1
            assert inside, (drawing.name, str(part))
        for (one, a), (other, b) in itertools.combinations(boxes, 2):
            if not (_is_turned(one) or _is_turned(other)):
                assert not a.padded(-2).overlaps(b.padded(-2)), (drawing.name, str(one), str(other))


def _is_turned(part):
    """A turned tick label's box may meet another's where their words do not; the y axes' labels stand upright."""
    return isinstance(part, Text) and part.get_rotation() % 90 != 0


def _inside(axes, axis, tick):
    low, high = sorted(axis.get_view_interval())
    return low <= tick.get_loc() <= high


def test_a_heatmap_shows_the_ranks(drawings, sweep):
    (group,) = [g for g in allocated(collect(sweep).runs)[0] if g.seeds[0].layers == 12]
    axes = drawings["ranks_local_deep12_glue-cola_flexlora"].figure.axes
    final = group.seeds[0].grid(group.seeds[0].ranks)[-1]
    assert np.array_equal(axes[0].images[0].get_array(), final.T)
    assert [text.get_text() for text in axes[0].texts] == [f"{value:.0f}" for value in final.T.ravel()]
    course = group.seeds[0].grid(group.seeds[0].ranks)
    for panel, k in zip(axes[1:], range(len(KINDS)), strict=False):
        assert np.array_equal(panel.images[0].get_array(), course[:, k].T)


def test_singular_values_are_those_of_the_adapter(drawings, sweep):
    (group,) = [g for g in allocated(collect(sweep).runs)[0] if g.seeds[0].layers == 12]
    one = group.seeds[0]
    panel = drawings["singular_values_local_deep12_glue-cola_flexlora"].figure.axes[0]
    drawn = {int(line.get_xdata()[0]): list(line.get_ydata()) for line in panel.lines}
    of_kind = zip(one.places, one.spectra, strict=True)
    assert drawn == {place.layer: list(values) for place, values in of_kind if place.kind == KINDS[0]}


def test_curves_are_means_with_bands(drawings):
    rte = next(a for a in drawings["learning_curves_local_deep12"].figure.axes if a.get_title() == "glue/rte: accuracy")
    assert [list(line.get_ydata()) for line in rte.lines] == [pytest.approx([20, 40, 60])] * 2
    band = rte.collections[0].get_paths()[0].vertices
    at_end = band[band[:, 0] == 3, 1]
    assert (at_end.min(), at_end.max()) == pytest.approx((50, 70))  # 60 and a standard deviation of 10
    assert [*rte.lines[0].get_xdata()] == [1, 2, 3]


def test_a_copied_run_is_no_second_seed(tmp_path):
    for copy, value in (("a", 0.25), ("b", 0.75)):
        write_run(tmp_path / "runs" / copy, value, main_metric="accuracy", scores=("accuracy",), started=copy,
                  history=history(value))  # fmt: skip
    result = report("figures", tmp_path / "runs", "--save", tmp_path / "both")
    assert result.returncode == 0
    assert result.stderr.startswith("flexlora-report: left out ")
    report("figures", tmp_path / "runs" / "b", "--save", tmp_path / "later")
    for name in figures.OF_SWEEPS:
        both, later = (tmp_path / which / f"{name}_local_small.png" for which in ("both", "later"))
        assert both.read_bytes() == later.read_bytes()


def test_figures_read_in_grey():
    greys = [np.dot(light_to_dark()(x / 255)[:3], (0.299, 0.587, 0.114)) for x in range(256)]
    assert all(later < earlier + 1e-3 for earlier, later in itertools.pairwise(greys))
    assert greys[0] - greys[-1] > 0.6
    looks = [(look(i)["linestyle"], look(i)["marker"]) for i in range(12)]
    assert len(set(looks)) == 12
    assert len({to_rgb(colour) for colour in COLOURS}) == len(COLOURS)
    assert rgb_to_hsv(to_rgb(COLOURS[0]))[2] == 0


def test_the_command_writes_png_and_svg_and_the_same_bytes_again(sweep, tmp_path):
    words = ("figures", sweep / "local" / "glue" / "cola" / "deep12", "--only", "ranks,learning_curves", "--save")
    first, again = report(*words, tmp_path / "a"), report(*words, tmp_path / "b")
    assert (first.returncode, again.returncode) == (0, 0), first.stderr
    names = {"learning_curves_local_deep12", "ranks_local_deep12_glue-cola_flexlora"}
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert files.keys() == {f"{name}.{ending}" for name in names for ending in ("png", "svg")}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    for name in names:
        assert files[f"{name}.png"].startswith(b"\x89PNG")
        assert ElementTree.fromstring(files[f"{name}.svg"]).tag.endswith("svg")
        assert f"{name}.{{png,svg}}" in first.stdout


def test_refusals_are_one_line(sweep, tmp_path):
    folder = write_run(tmp_path / "runs", status="failed")
    for words, expected in (
        ((sweep,), "the following arguments are required: --save"),
        ((sweep, "--save", tmp_path, "--only", "rank"), "there is no figure 'rank'. Did you mean ranks?"),
        ((folder, "--save", tmp_path / "none"), "there is nothing to draw"),
        ((tmp_path / "nix", "--save", tmp_path), "there is no folder"),
    ):
        result = report("figures", *words)
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) == 1, result.stderr
        assert expected in result.stderr


def test_without_matplotlib_it_says_what_to_install(sweep, tmp_path):
    code = "import sys; sys.modules['matplotlib'] = None; from flexlora.cli.report import main; main()"
    words = [sys.executable, "-c", code, "figures", str(sweep), "--save", str(tmp_path)]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "flexlora-report: figures need matplotlib: pip install 'flexlora[figures]'\n"


def test_of_one_task_only(sweep, tmp_path):
    drawn = report(
        "figures", sweep, "--only", "learning_curves,ranks", "--task", "glue/rte", "--save", tmp_path / "rte"
    )
    assert drawn.returncode == 0, drawn.stderr
    assert [path.name for path in (tmp_path / "rte").glob("*.svg")] == ["learning_curves_local_deep12.svg"]
    refused = report("figures", sweep, "--task", "glue/rtx", "--save", tmp_path)
    assert refused.stderr == (
        "flexlora-report: no run of task 'glue/rtx'. Did you mean glue/rte? "
        "There are: glue/cola, glue/rte, glue/sst2.\n"
    )


@pytest.mark.parametrize(
    "sizes", [(329_000, 335_000), (332_000,), (300_000, 1_200_000), (20_000, 180_000), (1_860, 86_000_000), (0, 90)]
)
def test_the_axis_of_sizes_says_where_they_are(tmp_path, sizes):
    """However near or far they are: two numbers at least, of which none overlap."""
    for place, size in enumerate(sizes):
        parameters = {"adapter_active": size, "adapter_allocated": size, "head": 10}
        write_run(tmp_path, main_metric="matthews_correlation", method=f"m{place}", parameters=parameters)
    runs = collect(tmp_path).runs
    (drawing,) = figures.draw_sweeps(runs, ["accuracy_parameters"])
    FigureCanvasAgg(drawing.figure).draw()
    panel = drawing.figure.axes[0]
    low, high = sorted(panel.get_xlim())
    shown = [tick.label1 for tick in panel.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    assert len({label.get_text() for label in shown} - {""}) >= 2
    boxes = [label.get_window_extent() for label in shown]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
