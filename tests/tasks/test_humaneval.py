"""HumanEval as a task: what is learned, which code counts, pass@k, and what is refused."""

import gzip
import itertools
import json
import math

import pytest
import torch
from commonsense_helpers import model_settings, write_llama
from compose_helpers import settings_of_run
from gsm8k_helpers import write_lines
from hypothesis import given
from hypothesis import strategies as st

from flexlora.conf_path import conf_dir
from flexlora.errors import UserError
from flexlora.models import causal_lm
from flexlora.results.folder import variant_name
from flexlora.settings import CodePrompt
from flexlora.settings.recipes import written_fields
from flexlora.tasks import code_execution, humaneval
from flexlora.tasks.code_execution import Isolation
from flexlora.tasks.humaneval import FAILED, NO_PROGRAM, PASSED, TIMED_OUT, load, pass_at_k
from flexlora.tasks.humaneval_text import ENDINGS, EVALUATION, code_in, first_code_block, problem
from flexlora.tasks.language_model import IGNORED

RUN = "task.run_generated_code=true"
PROBLEMS = [
    {
        "task_id": f"HumanEval/{n}",
        "prompt": f'def add(x):\n    """ Add {n}. """\n',
        "canonical_solution": f"    return x + {n}\n",
        "test": f"def check(candidate):\n    assert candidate(1) == {n + 1}\n",
        "entry_point": "add",
    }
    for n in range(4)
]
FEEDBACK = [
    {"query": "Add 2 to x.", "answer": "Like this:\n```python\nx + 2\n```\nIt adds.\n```\n4\n```", "lang": "python"},
    {"query": "What is code?", "answer": "It is text.", "lang": "python"},
    {"query": "Add 3 to x.", "answer": "```python\nx + 3", "lang": "python"},
]


@pytest.fixture(autouse=True)
def isolated(monkeypatch):
    """Tests that run no program need no isolation."""
    monkeypatch.setattr(humaneval, "isolation", lambda: Isolation.namespaces)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return causal_lm.load(model_settings(write_llama(tmp_path_factory.mktemp("llama"))))


@pytest.fixture
def folder(tmp_path):
    write_lines(tmp_path / "CodeFeedback-Filtered-Instruction.jsonl", FEEDBACK)
    lines = "".join(f"{json.dumps(row)}\n" for row in PROBLEMS)
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return tmp_path


def settings(folder, *overrides):
    given = () if folder is None else (f"task.data_dir={folder}",)
    return settings_of_run("task=humaneval", "method=lora", "task.token_cache=null", *given, *overrides).task


def refused(*arguments):
    with pytest.raises(UserError) as error:
        load(settings(*arguments))
    assert "\n" not in str(error.value)
    return str(error.value)


# --- rows -----------------------------------------------------------------------------------------------------------


def test_codefeedbacks_answers_end_with_their_first_code_block(folder):
    """As in LoRA-GA's data.py, which closes a block that is open. Rows without a block are left out."""
    task = load(settings(folder, RUN))
    begin = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    assert [(pair.prompt, pair.output) for pair in task.train_pairs] == [
        (
            f"{begin}\n\n### Instruction:\nAdd 2 to x.\n\n### Response:\n",
            "Like this:\n```python\nx + 2\n```",
        ),
        (f"{begin}\n\n### Instruction:\nAdd 3 to x.\n\n### Response:\n", "```python\nx + 3```"),
    ]
    assert [pair.code for pair in task.asked["test"]] == [row["prompt"] for row in PROBLEMS]
    assert not task.subset
    assert list(task.provenance["sha256"]) == ["CodeFeedback-Filtered-Instruction.jsonl", "HumanEval.jsonl.gz"]


@given(st.text(alphabet="a`\n "))
def test_the_first_code_block_is_that_of_lora_gas_expression(answer):
    theirs = "```".join(answer.split("```")[:2]) + "```" if "```" in answer else None
    assert first_code_block(answer) == theirs


def test_codealpacas_rows_have_inputs_and_no_code_blocks(folder):
    rows = [
        {"instruction": "Sort it.", "input": "[2, 1]", "output": "sorted([2, 1])"},
        {"instruction": "Print 1.", "input": "", "output": "print(1)"},
    ]
    (folder / "CodeFeedback-Filtered-Instruction.jsonl").unlink()
    (folder / "code_alpaca_20k.json").write_text(json.dumps(rows), encoding="utf-8")
    task = load(settings(folder, RUN, "task.first_code_block=false"))
    first, second = task.train_pairs
    assert first.prompt.endswith("### Instruction:\nSort it.\n\n### Input:\n[2, 1]\n\n### Response:\n")
    assert "paired with an input" in first.prompt
    assert "Input" not in second.prompt
    assert [pair.output for pair in task.train_pairs] == ["sorted([2, 1])", "print(1)"]
    assert "no row of" in refused(folder, RUN)
    assert "task.first_code_block" in refused(folder, RUN)


def test_the_prompt_is_lora_gas(folder):
    """eval_humaneval.py of Outsider565/LoRA-GA 7cbdd68, with its space after the first line break."""
    prompt = load(settings(folder, RUN)).asked["test"][0].prompt
    assert prompt.startswith(
        "Below is an instruction that describes a task.\n Write a response that appropriately completes the request.\n"
        "\n### Instruction:\nComplete the following Python code: \nNotes: respond with the entire"
    )
    assert prompt.endswith(
        f"use `    ` (4 spaces) for each level of indentation\n\ncode:\n```python\n{PROBLEMS[0]['prompt']}\n```\n\n"
        "### Response:\n```python\n"
    )
    assert load(settings(folder, RUN, "task.prompt=completion")).asked["test"][0].prompt == PROBLEMS[0]["prompt"]


def test_only_rows_that_are_asked_for_are_read(folder):
    task = load(settings(folder, RUN, "task.max_train_rows=1", "task.max_eval_rows=2"))
    assert (len(task.train_pairs), len(task.asked["test"]), task.subset) == (1, 2, True)


def test_real_problems_are_read_as_they_are(shared, folder):
    path = shared / "data" / "humaneval" / "HumanEval.jsonl.gz"
    if not path.is_file():
        pytest.skip("no HumanEval in the shared data")
    (folder / "HumanEval.jsonl.gz").write_bytes(path.read_bytes())
    problems = load(settings(folder, RUN)).asked["test"]
    assert len(problems) == 164
    assert problems[0].entry_point == "has_close_elements"
    assert problems[0].program("    pass").startswith(problems[0].code + "    pass\n")
    assert problems[0].program("    pass").endswith("\ncheck(has_close_elements)")


# --- code -----------------------------------------------------------------------------------------------------------

FUNCTION = "def add(x):\n    return x + 1"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (f"{FUNCTION}\n```\nIt adds.\n```python\nx", FUNCTION),
        (f"```python\n{FUNCTION}\n```", FUNCTION),
        (f"```\n{FUNCTION}", FUNCTION),
        (f"{FUNCTION}\n\nprint(add(input()))\nassert add(1) == 3\n# end\nx = add(1)", f"{FUNCTION}\n"),
        (f"{FUNCTION}\n\nif __name__ == '__main__':\n    add(2)", f"{FUNCTION}\n"),
        (f"import math\nONE = 1\n{FUNCTION}", f"import math\nONE = 1\n{FUNCTION}"),
        (
            f"{FUNCTION}\ndef other():\n    pass\nprint(1)\nclass A:\n    pass",
            f"{FUNCTION}\ndef other():\n    pass\nclass A:\n    pass",
        ),
        ("def add(x):\n\treturn x + 1", FUNCTION),
        ("    return x + 1\n```", "    return x + 1"),
        ("def added(x):\n    return x + 1\nprint(1)", "def added(x):\n    return x + 1\nprint(1)"),
        ("", ""),
    ],
)  # fmt: skip
def test_the_function_is_taken_out_of_an_answer(text, code):
    assert code_in(text, "add", CodePrompt.instruction) == code


@pytest.mark.parametrize(
    "after", ["def other():\n    pass", "class A: pass", "# next", "if x:", "print(1)", "@a", "```"]
)
def test_a_completion_ends_before_the_next_statement_of_the_module(after):
    body = "    if x:\n        return 1\n\n    # inside\n    return x\n"
    assert code_in(f"{body}\n{after}", "add", CodePrompt.completion) == body
    assert ENDINGS[CodePrompt.completion].search(f"{body}\n{after}")
    assert not ENDINGS[CodePrompt.completion].search(body)


def test_writing_stops_where_the_code_ends():
    ends = ENDINGS[CodePrompt.instruction]
    assert ends.search(f"{FUNCTION}\n```")
    assert ends.search("return x ```")
    assert not ends.search(FUNCTION)
    assert not ends.search("```python\ndef add(x):")


# --- scores ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(1, 7))
def test_pass_at_k_is_the_share_of_choices_of_k_samples_with_a_right_one(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        samples = [True] * c + [False] * (n - c)
        choices = [any(chosen) for chosen in itertools.combinations(samples, k)]
        assert pass_at_k(n, c, k) == pytest.approx(sum(choices) / len(choices), abs=1e-12)


def test_pass_at_k_is_humanevals_product_for_many_samples():
    for n, c, k in ((200, 3, 100), (200, 0, 10), (200, 150, 60), (1000, 1, 1000)):
        theirs = 1.0 if n - c < k else 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))
        assert pass_at_k(n, c, k) == pytest.approx(theirs, abs=1e-12)


def test_scores_are_the_means_over_problems(folder):
    task = load(settings(folder, RUN, "task.num_samples=3", "task.temperature=0.8", "task.pass_at=[3,1]"))
    given = [PASSED, FAILED, FAILED, TIMED_OUT, NO_PROGRAM, FAILED, PASSED, PASSED, PASSED, FAILED, FAILED, PASSED]
    assert task.score(None, given) == {
        "pass_at_1": pytest.approx((1 / 3 + 0 + 1 + 1 / 3) / 4),
        "pass_at_3": pytest.approx(3 / 4),
        "timed_out": 1.0,
        "no_python": 1.0,
    }


def test_written_programs_run_and_their_ends_are_told_apart(folder, monkeypatch):
    """Starts five isolated processes: how their ends become predictions is what is tested."""
    try:
        code_execution.isolation()
    except UserError as error:
        pytest.skip(str(error))
    task = load(settings(folder, RUN, "task.program_timeout=1"))
    pair = task.asked["test"][1]
    texts = [f"{FUNCTION}\n```", FUNCTION.replace("1", "2"), f"{FUNCTION} +", "def add(x):\n    while True: pass", ""]
    assert list(task.numbers([pair] * 5, texts)) == [PASSED, FAILED, NO_PROGRAM, TIMED_OUT, FAILED]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert list(task.numbers([pair], [FUNCTION])) == [PASSED]


def test_processes_of_a_machine_share_its_cores(folder, monkeypatch):
    pair = (task := load(settings(folder, RUN))).asked["test"][0]
    asked = []
    monkeypatch.setattr(humaneval, "run_programs", lambda programs, timeout, workers: asked.append(workers) or [])
    monkeypatch.setattr(humaneval.os, "sched_getaffinity", lambda _: range(16))
    for processes in ("1", "8", "1000"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        task.numbers([pair], [FUNCTION])
    assert asked == [16, 2, 1]


def test_the_permission_to_run_programs_is_in_no_folder_name():
    assert variant_name([RUN]) == "default"


def test_settings_of_humaneval_come_from_its_benchmark_and_from_the_one_that_it_inherits():
    training = written_fields("humaneval", [conf_dir()], "benchmark")["training"]
    assert training["batch_size"] == "${recipe:training.batch_size,4}"
    assert training["lr_scheduler"] == "cosine"


def test_the_loss_is_that_of_the_answer(folder, backbone):
    task = load(settings(folder, RUN, "task.max_new_tokens=4", "task.max_length=64"))
    task.preprocess(backbone.processor)
    batch = task.collate(task.train.examples[:2])
    assert (batch["labels"] == IGNORED).any(dim=1).all()
    assert torch.isfinite(task.loss(backbone.model, batch))
    assert [split.name for split in task.evaluation] == ["test"]
    assert task.evaluation[0].labels == [PASSED] * 4


def test_predictions_are_those_of_the_written_programs(folder, backbone, monkeypatch):
    task = load(settings(folder, RUN, "task.max_new_tokens=4", "task.num_samples=2", "task.temperature=1"))
    task.preprocess(backbone.processor)
    asked = []

    def numbers(pairs, texts):
        asked.extend(zip(pairs, texts, strict=True))
        return [float(i % 2) for i, _ in enumerate(pairs)]

    monkeypatch.setattr(task, "numbers", numbers)
    with torch.no_grad():
        loss, predictions = task.predict(backbone.model, task.collate(task.evaluation[0].examples))
    assert torch.isfinite(loss)
    assert [pair for pair, _ in asked] == [pair for pair in task.asked["test"] for _ in range(2)]
    assert task.score(task.evaluation[0], predictions.tolist())["pass_at_1"] == 0.5


# --- what is refused ------------------------------------------------------------------------------------------------


def test_nothing_is_read_or_run_unless_the_user_asks_for_it(tmp_path):
    """Before the data is looked for: the folder does not exist."""
    assert refused(tmp_path / "absent").startswith("task.run_generated_code is false, but HumanEval runs programs")


def test_a_machine_that_cannot_isolate_refuses_before_the_training(folder, monkeypatch):
    def cannot():
        raise UserError("generated programs cannot be isolated here")

    monkeypatch.setattr(humaneval, "isolation", cannot)
    assert refused(folder, RUN) == "generated programs cannot be isolated here"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task.pass_at=[]"], "task.pass_at=[]: give one or more numbers from 1 to task.num_samples=1"),
        (["task.pass_at=[10]", "task.main_metric=pass_at_10"], "task.pass_at=[10]: give one or more numbers from 1 to"),
        (["task.pass_at=[0]"], "task.pass_at=[0]: give one or more"),
        (["task.main_metric=pass@1"], "no metric 'pass@1' with task.pass_at=[1]. Did you mean pass_at_1?"),
        (["task.validation_rows=2"], "task.validation_rows: HumanEval's training rows have no tests"),
        (["task.num_samples=4"], "task.num_samples=4 with task.temperature=0 would give the same text"),
        (["task.train_file=CodeFedback.jsonl"], "has no file CodeFedback.jsonl. Did you mean"),
        (["task.question_column=qery"], "has no column 'qery'. Did you mean query?"),
        (["task.test_file=CodeFeedback-Filtered-Instruction.jsonl"], "has no column 'prompt'. HumanEval's are: prompt"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_helps(folder, overrides, said):
    assert said in refused(folder, RUN, *overrides)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"test": None}, "row 2: 'test' is missing, empty or not a text"),
        ({"entry_point": "os.exit()"}, "row 2: entry_point 'os.exit()' is not the name of a function"),
        ({"prompt": "\ud800"}, "row 2: 'prompt' contains half of a surrogate pair"),
    ],
)
def test_a_broken_problem_is_refused_by_its_row(folder, changed, said):
    (folder / "HumanEval.jsonl.gz").unlink()
    write_lines(folder / "HumanEval.jsonl", [PROBLEMS[0], PROBLEMS[1] | changed])
    assert said in refused(folder, RUN)


def test_an_input_that_is_no_text_is_refused_by_its_row(folder):
    write_lines(folder / "train.jsonl", [{"instruction": "a", "input": [1], "output": "```b```"}])
    assert "row 1: 'input' is not a text" in refused(folder, RUN, "task.train_file=train.jsonl")


def test_a_problem_is_asked_in_both_forms():
    for style in CodePrompt:
        made = problem(PROBLEMS[1]["prompt"], PROBLEMS[1]["canonical_solution"], PROBLEMS[1]["test"], "add", style)
        assert made.prompt == EVALUATION[style].format(prompt=PROBLEMS[1]["prompt"])
        namespace: dict = {}
        exec(made.program(made.output), namespace)
