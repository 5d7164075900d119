"""NOAH: the supernet's subnets, the search, and its two commands."""

import json
import math
import random

import pytest
import torch
from compose_helpers import settings_of_run
from hypothesis import given
from hypothesis import strategies as st
from method_helpers import make_loop, settings_of
from peft import PeftModel, get_peft_model
from vit_helpers import Pictures, logits, vit, wrapped
from vtab_helpers import write_task, write_vit

import flexlora
from flexlora.baselines import NoahConfig
from flexlora.baselines.noah import MODULES, Subnet
from flexlora.errors import UserError
from flexlora.methods import check_method
from flexlora.methods.evolution import Evolution, Search, SearchSpace, crossover
from flexlora.training.checkpoint import Checkpoints

FEW = {"generations": 2, "population": 6, "parents": 2, "mutations": 2, "crossovers": 2}
SUPERNET = ("task=vtab/kitti", "task.split=train800_val200", "method.sizes=[1,3]", "method.depths=[1,2]",
            *(f"method.{name}={value}" for name, value in FEW.items()))  # fmt: skip


def supernet():
    """The method, wrapped around the two blocks of width 32 of `vit`."""
    return wrapped("noah_supernet", *(item for item in SUPERNET if item.startswith("method.")))


# --- subnets -------------------------------------------------------------------------------------------------------

spaces = st.builds(
    lambda blocks, sizes, depths: SearchSpace(blocks, tuple(sizes), tuple(depths)),
    st.integers(1, 12),
    st.lists(st.integers(1, 100), min_size=1, max_size=4, unique=True),
    st.lists(st.integers(1, 12), min_size=1, max_size=4, unique=True),
)


def in_space(subnet: Subnet, space: SearchSpace) -> bool:
    """Sizes of the space in the first blocks, as many as one of its depths, and none behind."""
    depths = {min(depth, space.blocks) for depth in space.depths}
    for sizes in (getattr(subnet, name) for name in MODULES):
        depth = sum(size > 0 for size in sizes)
        if len(sizes) != space.blocks or depth not in depths or not set(sizes[:depth]) <= set(space.sizes):
            return False
        if any(sizes[depth:]):
            return False
    return True


@given(space=spaces, seed=st.integers(0, 99), chances=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_drawn_mutated_and_crossed_subnets_stay_in_the_space(space, seed, chances):
    draws = random.Random(seed)
    one, other = space.draw(draws), space.draw(draws)
    child = crossover(one, other, draws)
    for subnet in (one, other, child, space.mutate(one, *chances, draws)):
        assert in_space(subnet, space)
    for name in MODULES:
        assert getattr(child, name) in (getattr(one, name), getattr(other, name))
    assert space.mutate(one, 0, 0, draws) == one


@pytest.mark.parametrize("seed", range(5))
def test_parameters_are_those_of_the_tuner(seed):
    subnet = SearchSpace(2, (1, 2, 5), (1, 2)).draw(random.Random(seed))
    config = NoahConfig(**{name: list(getattr(subnet, name)) for name in MODULES})
    assert flexlora.count_parameters(get_peft_model(vit(), config)).adapter_active == subnet.parameters(32)


def test_blocks_without_prompts_keep_earlier_ones():
    subnet = Subnet((0, 3, 0, 2), (0,) * 4, (0,) * 4)
    assert [subnet.tokens_before(block) for block in range(4)] == [0, 0, 3, 3]


# --- the search ----------------------------------------------------------------------------------------------------

SPACE = SearchSpace(6, (1, 5, 10), (2, 4, 6))


def hidden_score(subnet: Subnet) -> float:
    """A score whose best subnet has 1 prompt, rank 10 and bottleneck 5 in all six blocks."""
    wanted = Subnet((1,) * 6, (10,) * 6, (5,) * 6)
    return -float(
        sum(a != b for name in MODULES for a, b in zip(getattr(subnet, name), getattr(wanted, name), strict=True))
    )


def searched(
    evolution: Evolution,
    *,
    seed: int = 0,
    allowed=lambda subnet: True,
    search: Search | None = None,
    after=lambda: None,
):
    search = search or Search()
    return search.run(SPACE, evolution, seed, allowed, hidden_score, after), search


def test_evolution_finds_better_subnets_than_as_many_random_ones():
    best = {}
    for name, bred in (("evolved", 25), ("random", 0)):
        results = [searched(Evolution(generations=10, mutations=bred, crossovers=bred), seed=seed) for seed in range(5)]
        assert {len(search.scores) for _, search in results} == {11 * 50}
        best[name] = sum(hidden_score(found) for found, _ in results) / 5
    assert best["evolved"] > best["random"] + 1


def test_no_subnet_is_scored_twice_and_none_that_is_too_large():
    scored = []

    def score(subnet):
        scored.append(subnet)
        return hidden_score(subnet)

    found = Search().run(SPACE, Evolution(generations=3), 0, lambda s: s.parameters(32) < 9000, score, lambda: None)
    assert len(scored) == len(set(scored)) > 150
    assert all(subnet.parameters(32) < 9000 for subnet in scored)
    assert hidden_score(found) == max(map(hidden_score, scored))


def test_the_search_of_a_small_space_ends():
    space = SearchSpace(1, (1, 2), (1,))
    search = Search()
    search.run(space, Evolution(), 0, lambda subnet: True, lambda subnet: 0.0, lambda: None)
    assert len(search.scores) == 8


def test_a_search_without_an_allowed_subnet_is_refused():
    with pytest.raises(ValueError, match="no drawn subnet is small enough"):
        searched(Evolution(generations=1), allowed=lambda subnet: False)


def test_a_resumed_search_equals_an_uninterrupted_one():
    evolution = Evolution(generations=4)
    straight, whole = searched(evolution)
    states = []
    search = Search()
    search.run(SPACE, evolution, 0, lambda s: True, hidden_score, lambda: states.append(json.dumps(search.state())))
    for state in states:
        found, again = searched(evolution, search=Search.of(json.loads(state)))
        assert (found, again.scores) == (straight, whole.scores)


# --- the supernet --------------------------------------------------------------------------------------------------


def test_a_subnet_of_the_supernet_is_its_first_rows():
    """Evaluating a subnet, cutting to it, and a NOAH of its sizes with these rows give the same output."""
    method, model = supernet()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    subnet = Subnet((1, 3), (3, 0), (1, 1))
    noah = model.base_model
    noah.choice("default").evaluation = subnet
    expected = logits(model)
    noah.cut("default", subnet)
    assert torch.equal(logits(model), expected)
    counted = method.parameters(model)
    assert counted["adapter_active"] == counted["adapter_allocated"] == subnet.parameters(32)


def test_steps_train_random_subnets_and_all_parameters_have_gradients():
    method, model = supernet()
    seen, gradients = [], []
    after_step = method.after_step

    def watched(step, optimizer):
        seen.append(method._noah.choice("default").training)
        gradients.append([p.grad is not None for p in model.parameters() if p.requires_grad])
        after_step(step, optimizer)

    method.after_step = watched
    loop = make_loop(method, model, settings_of("noah_supernet"), total_steps=12, task=Pictures())
    method.search = lambda *_: None
    loop.run()
    assert len(set(seen)) > 6
    assert all(map(all, gradients))


def test_the_best_subnet_is_evaluated_saved_and_loaded(tmp_path):
    method, model = supernet()
    loop = make_loop(method, model, settings_of("noah_supernet"), task=Pictures())
    outcome = loop.run()
    assert outcome.status == "done"
    method.save(model, tmp_path)
    subnet = json.loads((tmp_path / "subnet.json").read_text())
    assert subnet["score"] == outcome.last["accuracy"]
    assert subnet["tried"] == len(method._search.scores) == 18
    assert subnet["score"] == max(method._search.scores.values())
    assert subnet["parameters"] == method.parameters(model)["adapter_active"]
    loaded = PeftModel.from_pretrained(vit(), str(tmp_path))
    torch.testing.assert_close(logits(loaded), logits(model))


def test_a_killed_search_resumes_with_the_same_result(tmp_path):
    """The kill is in the second generation. The checkpoint has the first one's scores; the result is identical."""
    settings = settings_of("noah_supernet")
    method, straight = supernet()
    make_loop(method, straight, settings, task=Pictures()).run()
    expected, scores = dict(straight.named_parameters()), method._search.scores

    class Killed(Exception):
        pass

    method, model = supernet()
    loop = make_loop(method, model, settings, task=Pictures(), checkpoints=Checkpoints(tmp_path))
    score, asked = loop._main_score, []

    def dies():
        asked.append(1)
        if len(asked) == 9:
            raise Killed
        return score()

    loop._main_score = dies
    with pytest.raises(Killed):
        loop.run()
    method, model = supernet()
    loop = make_loop(method, model, settings, task=Pictures(), checkpoints=Checkpoints(tmp_path))
    loop.load_state_dict(*Checkpoints(tmp_path).load())
    score, again = loop._main_score, []

    def counted():
        again.append(1)
        return score()

    loop._main_score = counted
    loop.run()
    assert len(again) == 12  # two generations of three
    assert method._search.scores == scores
    assert [key for key, value in model.named_parameters() if not torch.equal(value, expected[key])] == []


# --- what is refused -----------------------------------------------------------------------------------------------


def refusal(method: str, *overrides: str) -> str:
    with pytest.raises(UserError) as refused:
        check_method(settings_of_run("task=vtab/kitti", f"method={method}", *overrides))
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("task.split=train800val200_test",), "set task.split=train800_val200"),
        (("method.sizes=[0,5]",), "method.sizes must be a list of whole numbers of at least 1, not [0, 5]"),
        (("method.depths=[]",), "method.depths must be a list"),
        (("method.population=0",), "method.population must be a whole number of at least 1, not 0"),
        (("method.generations=-1",), "method.generations must be a whole number of at least 0, not -1"),
        (
            ("method.depth_probability=1.5",),
            "method.depth_probability must be a number of at least 0 and of at most 1, not 1.5",
        ),
        (("method.max_parameters=0",), "method.max_parameters must be a whole number of at least 1, not 0"),
    ],
)
def test_an_invalid_setting_of_the_supernet_is_refused(overrides, said):
    assert said in refusal("noah_supernet", *overrides)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("method.prompt_dim=-1",), "method.prompt_dim must be a whole number of at least 0, or a list"),
        (("method.lora_dim=[]",), "method.lora_dim must be"),
        (("method.prompt_dim=0", "method.lora_dim=[0]", "method.adapter_dim=0"), "method.prompt_dim must be above 0"),
        (("method.dropout=1",), "method.dropout must be a probability below 1"),
        (("method.subnet=/nowhere.json",), "method.subnet cannot be read: /nowhere.json"),
    ],
)
def test_an_invalid_setting_of_noah_is_refused(overrides, said):
    assert said in refusal("noah", *overrides)


@pytest.mark.parametrize("text", ["[]", "{}", '{"prompt_dim": [1], "lora_dim": [1], "adapter_dim": ["1"]}', "no"])
def test_a_file_without_a_subnet_is_refused(text, tmp_path):
    (tmp_path / "subnet.json").write_text(text)
    assert "method.subnet " in refusal("noah", f"method.subnet={tmp_path / 'subnet.json'}")


# --- from the command line -----------------------------------------------------------------------------------------


def test_the_commands_search_and_then_train_the_subnet(flexlora_run, tmp_path):
    write_task(tmp_path / "data" / "kitti", train=24, val=8, test=12)
    vit_folder = write_vit(tmp_path / "vit")
    shared = ("task=vtab/kitti", "model=local", f"model.path={vit_folder}", f"task.data_dir={tmp_path / 'data'}",
              "training.batch_size=8", f"output_root={tmp_path}", "variant=test")  # fmt: skip
    result = flexlora_run(*shared, "method=noah_supernet", "training.epochs=2", *SUPERNET[2:])
    assert result.returncode == 0, result.stderr
    run = tmp_path / "local/vtab/kitti/vit/noah_supernet/test/seed0"
    subnet = json.loads((run / "adapter" / "subnet.json").read_text())
    record = json.loads((run / "result.json").read_text())
    assert record["metrics"]["last"]["accuracy"] == subnet["score"]
    assert record["parameters"]["adapter_active"] == subnet["parameters"]
    command = (*shared, "method=noah", f"method.subnet={run / 'adapter' / 'subnet.json'}", "training.epochs=2")
    result = flexlora_run(*command)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "local/vtab/kitti/vit/noah/test/seed0/result.json").read_text())
    assert record["parameters"]["adapter_active"] == subnet["parameters"]
    assert math.isfinite(record["train_loss"])
    # The published subnet is one for twelve blocks.
    result = flexlora_run(*shared, "method=noah", "variant=twelve")
    assert result.returncode != 0
    assert "has 12 sizes, but the model has 2 blocks" in result.stderr
    assert "Traceback" not in result.stderr
