"""What is read of an allocation, and the paper's claims about it, on runs whose ranks the test chose."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_helpers import KINDS, report, write_run, write_training
from safetensors.numpy import save_file
from scipy.stats import spearmanr

from flexlora.report import paper_claims
from flexlora.report.allocation import Allocation, energy, entropy, place_of, read_allocation, short_names
from flexlora.report.seed_groups import allocated
from flexlora.results.collect import collect

EVENTS = {"count": 5}


@pytest.fixture
def folder(tmp_path):
    return write_training(write_run(tmp_path, method="flexlora", rank_events=EVENTS), layers=12)


def read(root) -> Allocation:
    found = read_allocation(collect(root).runs[0])
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("module", "place"),
    [
        ("deberta.encoder.layer.11.attention.self.query_proj", (11, "attention.self.query_proj")),
        ("model.layers.0.mlp.up_proj", (0, "mlp.up_proj")),
        ("blocks.3.attn.qkv", (3, "attn.qkv")),
        ("3.attn.qkv", (3, "attn.qkv")),
        ("pooler.dense", None),
        ("classifier.0", None),
        ("encoder.layer1.dense", None),
    ],
)
def test_where_a_matrix_stands(module, place):
    assert place_of(module) == place


def test_short_names_are_told_apart():
    names = short_names(KINDS)
    assert names["attention.self.query_proj"] == "query_proj"
    assert names["attention.output.dense"] == "attention.output.dense"
    assert names["output.dense"] == "output.dense"
    assert len(set(names.values())) == len(KINDS)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(".".join), unique=True, min_size=1))
def test_short_names_are_ends_and_never_the_same(kinds):
    names = short_names(kinds)
    assert len(set(names.values())) == len(kinds)
    assert all(f".{kind}".endswith(f".{name}") for kind, name in names.items())


def test_ranks_over_time(folder):
    one = read(folder)
    events = [json.loads(line) for line in (folder / "ranks.jsonl").read_text().splitlines()]
    assert one.steps == [10, 20, 30, 40, 50]
    assert one.ranks.shape == (6, 12 * len(KINDS))
    assert (one.ranks[0] == 8).all()
    assert one.ranks[-1].tolist() == [*events[-1]["ranks"].values()]
    assert one.scores[2].tolist() == [*events[2]["scores"].values()]
    assert (one.layers, one.kinds) == (12, [*KINDS])
    grid = one.grid(one.ranks)
    assert grid.shape == (6, len(KINDS), 12)
    assert grid[-1, 1, 10] == events[-1]["ranks"]["model.encoder.layer.10.attention.self.key_proj"] == 7
    assert [len(values) for values in one.spectra] == one.ranks[-1].tolist()
    assert all((np.diff(values) <= 0).all() and (values >= 0).all() for values in one.spectra)


def test_modules_outside_of_layers_and_undefined_scores(folder):
    rows = [json.loads(line) for line in (folder / "ranks.jsonl").read_text().splitlines()]
    name = "model.encoder.layer.0.output.dense"
    for row, score in zip(rows, (None, 1e308, 0.5, 0.5, 0.5), strict=True):
        row["ranks"]["pooler.dense"] = 3
        row["scores"][name] = score
    (folder / "ranks.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    one = read(folder)
    assert len(one.places) == 12 * len(KINDS)
    column = one.scores[:, one.places.index((0, "output.dense"))]
    assert np.isnan(column).tolist() == [True, True, False, False, False]


def test_adalora_starts_at_its_init_r_and_masks_directions(tmp_path):
    folder = write_run(tmp_path, method="adalora", rank_events=EVENTS, config={"method": {"init_r": 12}})
    ranks = {"layer.0.a": 2, "layer.1.a": 1}
    (folder / "ranks.jsonl").write_text(json.dumps({"step": 4, "ranks": ranks, "pruned": [*ranks], "grown": []}) + "\n")
    (folder / "adapter").mkdir()
    tensors = {
        f"base_model.model.{name}.lora_E": np.array([[0.0], [-2.0], [0.5 * rank]], dtype=np.float32)
        for name, rank in (("layer.0.a", 2), ("layer.1.a", 0))
    }
    save_file(tensors, folder / "adapter" / "adapter_model.safetensors")
    one = read(folder)
    assert one.ranks.tolist() == [[12, 12], [2, 1]]
    assert np.isnan(one.scores).all()
    assert [values.tolist() for values in one.spectra] == [[2.0, 1.0], [2.0]]


@pytest.mark.parametrize(
    ("settings", "chosen", "start"),
    [
        ({"r": 12, "target_r": 8}, None, 12),
        ({"r": 12, "target_r": 8}, {"changed": {"r": 15}}, 15),
        ({"init_r": 12, "target_r": 8}, {"changed": {"init_r": 6}}, 6),
    ],
)
def test_where_several_directions_go_at_once_all_begin_at_the_same_rank(tmp_path, settings, chosen, start):
    """Dynamic-rank DoRA's `r` is AdaLoRA's `init_r`; a parameter budget may have chosen another."""
    config = {"method": settings}
    folder = write_run(tmp_path, method="dynamic_dora", rank_events=EVENTS, config=config, parameter_budget=chosen)
    row = {"step": 4, "ranks": {"layer.0.a": 2, "layer.1.a": 5}, "pruned": ["layer.0.a", "layer.1.a"], "grown": []}
    (folder / "ranks.jsonl").write_text(json.dumps(row) + "\n")
    assert read(folder).ranks.tolist() == [[start, start], [2, 5]]


def test_runs_without_events_have_no_allocation(tmp_path):
    folder = write_run(tmp_path)
    assert read_allocation(collect(folder).runs[0]) is None
    (folder / "ranks.jsonl").write_text("")
    assert read_allocation(collect(folder).runs[0]) is None


EVENT = '"step": 1, "ranks": {"layer.0.a": 1}'
HUGE = "9" * 400


@pytest.mark.parametrize(
    "line",
    [
        b"{]",
        b"[1]",
        b"\xff",
        f"{{{EVENT}}}".encode(),
        f'{{{EVENT}, "pruned": [], "grown": [], "scores": [1]}}'.encode(),
        f'{{"step": 1, "ranks": {{"layer.0.a": {HUGE}}}, "pruned": [], "grown": []}}'.encode(),
    ],
)
def test_a_broken_file_is_named(folder, line):
    (folder / "ranks.jsonl").write_bytes(line + b"\n")
    result = report("claims", folder)
    assert (result.returncode, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1
    assert str(folder / "ranks.jsonl") in result.stderr


def test_a_broken_file_does_not_take_the_others_along(tmp_path):
    """Three groups: of one the events are broken, of one the adapter; the third, and the sweep's figures, are shown."""
    runs = tmp_path / "runs"
    common = {"method": "flexlora", "rank_events": EVENTS, "main_metric": "accuracy", "scores": ("accuracy",)}
    events, adapter, _ = (write_training(write_run(runs, variant=name, **common), layers=2, events=2) for name in "abc")
    (events / "ranks.jsonl").write_text("{]\n")
    (adapter / "adapter" / "adapter_model.safetensors").write_bytes(b"none")
    named = [events / "ranks.jsonl", adapter / "adapter" / "adapter_model.safetensors"]
    saved = tmp_path / "figures"
    for words in (
        ("claims", runs),
        ("stability", runs),
        ("figures", runs, "--only", "ranks,learning_curves", "--save", saved),
    ):
        result = report(*words)
        assert result.returncode == 1, words
        assert [str(file) in line for file, line in zip(named, result.stderr.splitlines(), strict=True)] == [True] * 2
        assert "flexlora c" in result.stdout or "flexlora_c" in result.stdout
        assert "flexlora a" not in result.stdout
    assert (saved / "learning_curves_local_small.svg").is_file()
    result = report("html", runs, "--output", tmp_path / "page.html")
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 2)
    page = (tmp_path / "page.html").read_text()
    assert all(f'<td>{file}</td><td class="text">broken</td>' in page for file in named)


def test_a_copied_run_is_no_second_seed(tmp_path):
    for copy, tilt in (("a", -1), ("b", 1)):
        folder = write_run(tmp_path / copy, method="flexlora", rank_events=EVENTS, started=f"2026-{copy}")
        write_training(folder, layers=12, tilt=tilt)
    for command in ("claims", "stability"):
        result = report(command, tmp_path)
        assert result.returncode == 0
        assert "flexlora · seed 0\n" in result.stdout
        assert [line.startswith("flexlora-report: left out ") for line in result.stderr.splitlines()] == [True]
    assert "L0–L3 grow: holds\n" in report("claims", tmp_path).stdout  # the later one


def test_energy_and_entropy():
    values = np.array([2.0, 1.0, 0.25])
    shares = [4 / 5.0625, 1 / 5.0625, 0.0625 / 5.0625]
    assert entropy(values) == pytest.approx(-sum(s * math.log(s) for s in shares) / math.log(3), abs=1e-6)
    assert energy(values) == pytest.approx(5.0625)
    assert np.isnan(entropy(np.array([1.0])))
    assert np.isnan(entropy(np.zeros(3)))
    assert entropy(np.ones(4)) == pytest.approx(1.0)


def verdicts(seeds) -> dict[str, str]:
    return {claim.text.split(" L")[0]: claim.verdict for claim in paper_claims.check(seeds)}


def test_claims_that_hold_and_that_do_not(tmp_path):
    for name, tilt in (("as", 1), ("against", -1)):
        write_training(write_run(tmp_path / name, method="flexlora", rank_events=EVENTS), layers=12, tilt=tilt)
    like, unlike = read(tmp_path / "as"), read(tmp_path / "against")
    assert verdicts([like])["the shallow layers"] == verdicts([like])["the deep layers"] == "holds"
    assert verdicts([unlike])["the shallow layers"] == verdicts([unlike])["the deep layers"] == "does not hold"
    assert verdicts([like, unlike, like])["the shallow layers"] == "holds for 2 of 3 seeds"
    shallow, deep, *_ = paper_claims.check([like])
    assert shallow.text == "the shallow layers L0–L3 grow"
    assert deep.text == "the deep layers L9–L11 shrink"
    # Five events raise one matrix each among the 24 of L0–L3.
    assert shallow.numbers[0] == f"mean rank 8.00 → {8 + 5 / 24:.2f}"
    assert shallow.numbers[1] == "L0 +0.33, L1 +0.17, L2 +0.17, L3 +0.17"
    assert deep.numbers[0] == f"mean rank 8.00 → {8 - 5 / 18:.2f}"


def placed(spectra, start=4):
    """An allocation of one matrix a layer with these spectra, that began with `start` directions each."""
    from flexlora.report.allocation import Place

    spectra = [np.sort(np.abs(np.array(values, dtype=float)))[::-1] for values in spectra]
    ranks = np.array([[start] * len(spectra), [len(values) for values in spectra]], dtype=float)
    return Allocation(None, [Place(i, "a") for i in range(len(spectra))], [1], ranks, ranks[1:], spectra)


FLAT_LOW, FLAT_LOW_LARGE = [0.1] * 3, [0.1] * 9
STEEP_HIGH = [[9.0, 1.0, 0.1, 0.1], [8.0, 1.0, 0.2, 0.1], [7.0, 1.0, 0.1, 0.2]]
MIDDLE = [[2.0, 1.5, 1.0, 0.5], [2.1, 1.4, 1.0, 0.6]]


@pytest.mark.parametrize(
    ("low", "verdict", "numbers"),
    [(FLAT_LOW, "holds", "0 of the 2 matrices"), (FLAT_LOW_LARGE, "does not hold", "1 of the 2 matrices")],
)
def test_the_corner_of_low_energy_and_high_entropy(low, verdict, numbers):
    spectra = [low, *MIDDLE, *STEEP_HIGH]
    claim = paper_claims.check([placed(spectra)])[-1]
    assert claim.text == "no matrix of low energy and high entropy has a large rank"
    assert claim.verdict == verdict
    assert claim.numbers[0].startswith(numbers)
    ranks = [len(values) for values in spectra]
    expected = spearmanr(ranks, [energy(np.array(values)) for values in spectra]).statistic
    assert f"with energy {expected:+.2f}" in claim.numbers[1]


def test_a_rank_that_did_not_grow_is_not_large():
    spectra = [[0.1] * 4, *MIDDLE, *STEEP_HIGH]  # all of rank 4, as they began
    assert paper_claims.check([placed(spectra)])[-1].verdict == "holds"
    assert paper_claims.check([placed(spectra, start=3)])[-1].verdict == "does not hold"


def test_a_corner_without_a_matrix_says_nothing():
    spectra = [
        [0.1, 0.001, 0.001],
        [0.2, 0.002, 0.003],
        [1.0, 0.5, 0.4],
        [2.0, 1.2, 0.9],
        [4.0, 3.9, 3.8],
        [5.0, 5.0, 5.0],
    ]
    claim = paper_claims.check([placed(spectra)])[-1]
    assert claim.verdict == "not to be checked: no matrix is there"
    nothing = placed([[1.0], [2.0], [0.0, 0.0]])  # none has an entropy
    assert paper_claims.check([nothing])[-1].verdict == "not to be checked"


def test_layers_without_a_matrix_are_left_out(recwarn):
    """Ranks of L0, L2 and L11 alone, all of which grow; and of layers 4 and 5 of six, so that none is shallow."""
    from flexlora.report.allocation import Place

    def grown(*layers):
        ranks = np.array([[4.0] * len(layers), [5.0] * len(layers)])
        return Allocation(None, [Place(i, "a") for i in layers], [1], ranks, ranks[1:], None)

    shallow, deep, *_ = paper_claims.check([grown(0, 2, 11)])
    assert (shallow.verdict, shallow.numbers[1]) == ("holds", "L0 +1.00, L2 +1.00")
    assert (deep.verdict, deep.numbers[1]) == ("does not hold", "L11 +1.00")
    shallow, *_ = paper_claims.check([grown(4, 5)])
    assert (shallow.text, shallow.verdict) == ("the shallow layers L0–L1 grow", "not to be checked")
    assert not recwarn.list


def test_middle_layers(folder):
    one = read(folder)
    named = [i for i, place in enumerate(one.places) if place.kind in paper_claims.PRESERVED and 4 <= place.layer < 9]
    one.ranks[-1][named] += 1
    assert verdicts([one])["in the middle layers"] == "holds"
    one.ranks[-1][named] -= 2
    assert verdicts([one])["in the middle layers"] == "does not hold"


def test_seeds_are_grouped_and_others_left_out(tmp_path):
    for seed, layers in ((0, 4), (1, 4), (2, 5)):  # the third has other matrices
        write_training(write_run(tmp_path, method="flexlora", seed=seed, rank_events=EVENTS), layers=layers, seed=seed)
    write_training(write_run(tmp_path, method="flexlora", variant="b", rank_events=EVENTS))
    write_run(tmp_path, method="lora")
    write_run(tmp_path, method="flexlora", seed=4, status="failed", rank_events=EVENTS)
    runs = collect(tmp_path).runs
    groups, left, broken = allocated(runs)
    assert (left, broken) == (0, [])
    assert sorted([one.run.record.seed for one in group.seeds] for group in groups) == [[0], [0, 1]]
    assert allocated(runs, most=1)[1] == 1
    assert allocated(runs, most=1)[0][0].file == "local_small_glue-cola_flexlora_b"


def test_the_command_prints_them(folder, tmp_path):
    result = report("claims", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "  the shallow layers L0–L3 grow: holds\n      mean rank 8.00 → 8.21" in result.stdout
    write_run(tmp_path / "other")
    none = report("claims", tmp_path / "other")
    assert none.returncode == 2
    assert "that is done moved its ranks" in none.stderr
