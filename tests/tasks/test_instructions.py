"""Instructions of the user: what is read, what is learned, what the metrics are, and every mistake is one line."""

import csv
import json
import logging
from types import SimpleNamespace

import pytest
import torch
from commonsense_helpers import model_settings, write_llama
from compose_helpers import settings_of_run

from flexlora.errors import UserError
from flexlora.models import causal_lm
from flexlora.tasks import load_task
from flexlora.tasks.instructions import _alpaca_pairs, _Chat
from flexlora.tasks.language_model import IGNORED, answer_tokens

ROWS = [{"instruction": f"is it {i}", "input": "" if i % 2 else "yes", "output": f"it is {i}"} for i in range(20)]
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Response:"
)
CHAT = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
    {"role": "assistant", "content": "four"},
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }} {{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return causal_lm.load(model_settings(write_llama(tmp_path_factory.mktemp("llama"))))


@pytest.fixture
def tokenizer(backbone):
    yield backbone.processor
    backbone.processor.chat_template = None


def write(file, rows=ROWS):
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


def load(data, *overrides):
    given = ("task=instructions", "method=lora", "task.token_cache=null", f"task.data_dir={data}")
    return load_task(settings_of_run(*given, *overrides).task)


def refusal(data, *overrides):
    with pytest.raises(UserError) as refused:
        load(data, *overrides)
    message = str(refused.value)
    assert "\n" not in message
    return message.replace(str(data.parent), "DIR")


def answers(task):
    """The decoded tokens of each training example from its answer on."""
    return [task.processor.decode(one["input_ids"][one["labels"] :]) for one in task.train.examples]


def test_columns_and_split_are_read_shown_and_recorded(tmp_path, caplog):
    caplog.set_level(logging.INFO, "flexlora")
    task = load(write(tmp_path / "pets.jsonl"))
    assert (task.name, task.main_metric) == ("instructions/pets", "token_accuracy")
    facts = task.provenance
    assert facts["columns"] == {"instruction": "instruction", "input": "input", "output": "output"}
    assert facts["split"] == {"by": "drawn with seed 0", "train": 16, "test": 4}
    assert list(facts["sha256"]) == ["pets.jsonl"]
    assert "data: instruction instruction; input input; output output" in caplog.text
    assert "data: 16 train, 4 test conversations, drawn with seed 0" in caplog.text
    other = load(tmp_path / "pets.jsonl", "task.split_seed=1", "seed=3")
    same = load(tmp_path / "pets.jsonl", "seed=3")
    assert other.rows["test"] != task.rows["test"] == same.rows["test"]


def test_an_input_follows_its_instruction_and_usual_names_are_found(tmp_path):
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["prompt", "context", "completion"], ["a", "b", "c"], ["d", "", 5]])
    task = load(tmp_path / "a.csv", "task.test_share=0.5")
    rows = [row for part in task.rows.values() for row in part]
    said = sorted((row[0]["content"], row[1]["content"]) for row in rows)
    assert said == [("a\n\nb", "c"), ("d", "5")]


def test_files_of_a_folder_are_its_split_and_a_column_can_be_named(tmp_path):
    rows = [{"ask": row["instruction"], "say": row["output"], "output": "x"} for row in ROWS]
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "dev.json", rows[:3])
    task = load(tmp_path, "task.instruction=ask", "task.output=say")
    assert task.provenance["split"] == {"by": "files", "train": 20, "dev": 3}
    assert task.rows["dev"][0][1]["content"] == "it is 0"


def test_without_a_chat_template_the_loss_covers_the_answer_and_its_end(tmp_path, backbone):
    write(tmp_path / "train.jsonl", [{"instruction": "true", "output": "false"}])
    write(tmp_path / "test.jsonl", [{"instruction": "true", "output": "false true"}])
    task = load(tmp_path)
    task.preprocess(backbone.processor)
    assert task.provenance["prompt"] == "alpaca"
    batch = task.collate(list(task.train.examples))
    learned = batch["labels"][0][batch["labels"][0] != IGNORED].tolist()
    assert learned == backbone.processor.convert_tokens_to_ids(["false", "</s>"])
    assert task.evaluation[0].labels == [3]  # two words and the end
    whole = load(tmp_path, "task.train_on_inputs=true")
    whole.preprocess(backbone.processor)
    assert [one["labels"] for one in whole.train.examples] == [0]
    assert whole.evaluation[0].labels == [3]


@pytest.mark.parametrize("keys", [("role", "content"), ("from", "value")])
def test_every_answer_of_a_conversation_is_an_example_by_the_chat_template(keys, tmp_path, tokenizer):
    tokenizer.chat_template = TEMPLATE
    names = {"user": "human", "assistant": "gpt"} if keys[0] == "from" else {}
    chat = [{keys[0]: names.get(m["role"], m["role"]), keys[1]: m["content"]} for m in CHAT]
    task = load(write(tmp_path / "a.jsonl", [{"messages": chat}] * 2), "task.test_share=0.5")
    task.preprocess(tokenizer)
    assert task.provenance["prompt"] == "chat"
    ids = [one["input_ids"].tolist() for one in task.train.examples]
    assert [row.count(tokenizer.bos_token_id) for row in ids] == [1, 1]  # the template's and not the tokenizer's too
    assert [row.count(tokenizer.eos_token_id) for row in ids] == [3, 5]  # and none after the template's last
    assert [answer.split()[-1] for answer in answers(task)] == ["</s>", "</s>"]
    assert [pair.output[-4:] for pair in _Chat(tokenizer).pairs(CHAT)] == ["</s>", "</s>"]  # without the line's end
    assert task.evaluation[0].labels == [2, 2]
    plain = load(tmp_path / "a.jsonl", "task.test_share=0.5", "task.prompt=alpaca")
    plain.preprocess(tokenizer)
    assert plain.provenance["prompt"] == "alpaca"


def test_alpacas_headings_carry_a_conversation():
    first = f"be short\n\n{ALPACA.format('one')}"
    second = f"{first} two\n\n### Instruction:\nthree\n\n### Response:"
    assert [(pair.prompt, pair.output) for pair in _alpaca_pairs(CHAT)] == [(first, " two"), (second, " four")]


def test_the_metrics_are_those_of_greedy_decoding(tmp_path, backbone):
    """An answer that the model itself writes is an exact match. One with another last word is not."""
    from flexlora.tasks.generation import generate

    tokenizer, model = backbone.processor, backbone.model.eval()
    prompt = tokenizer(ALPACA.format("true"))["input_ids"]
    made = generate(model, torch.tensor([prompt]), torch.ones(1, len(prompt)), tokenizer, max_new_tokens=3)
    written = tokenizer.decode(made[0, len(prompt) :])
    wrong = " ".join([*written.split()[:2], "winogrande"])
    rows = [{"instruction": "true", "output": answer} for answer in (written, wrong)]
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "test.jsonl", rows)
    task = load(tmp_path)
    task.preprocess(tokenizer)
    (split,) = task.evaluation
    split.labels = [3, 3]
    batch = task.collate(list(split.examples))
    batch["labels"][:, -1] = IGNORED  # without the end, which this model does not write
    for name in ("input_ids", "labels", "attention_mask"):
        batch[name] = batch[name][:, :-1]
    with torch.no_grad():
        loss, right = task.predict(model, batch)
        one = task.predict(model, {name: tensor[:1] for name, tensor in batch.items()})[0]
        other = task.predict(model, {name: tensor[1:] for name, tensor in batch.items()})[0]
    assert right.tolist() == [3, 2]
    assert task.score(split, right.tolist()) == {"token_accuracy": 5 / 6, "exact_match": 0.5}
    assert loss == pytest.approx(float(one + other) / 2)


def test_only_tokens_of_the_answer_count():
    """A model that is always right is right on the scored tokens only, however long the other answers are."""

    class Knowing(torch.nn.Module):
        def forward(self, input_ids, attention_mask, use_cache):
            return SimpleNamespace(logits=torch.nn.functional.one_hot(input_ids.roll(-1, 1), 9) * 50.0)

    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    scored = torch.tensor([[False, True, True, True], [False, False, False, True]])
    log_probabilities, right = answer_tokens(Knowing(), ids, torch.ones_like(ids), scored)
    assert right.tolist() == [[True, True, True], [False, False, True]]
    assert log_probabilities.abs().max() < 1e-6


def test_an_answer_without_room_is_left_out_with_a_line(tmp_path, backbone, caplog):
    rows = [{"instruction": " ".join(["true"] * length), "output": "false"} for length in (1, 60)]
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "test.jsonl", rows[:1])
    task = load(tmp_path, "task.max_length=40")
    task.preprocess(backbone.processor)
    assert len(task.train) == 1
    assert "1 of 2 answers of split 'train' are left out" in caplog.text
    tight = load(tmp_path, "task.max_length=5")
    with pytest.raises(UserError, match=r"task.max_length=5 leaves no room for an answer in split 'train'"):
        tight.preprocess(backbone.processor)


@pytest.mark.parametrize(
    ("rows", "overrides", "message"),
    [
        ([{"text": "a"}], [], "DIR/a.jsonl has neither chat messages (messages, conversations, conversation) nor an"),
        ([{"prompt": "a", "output": ""}], [], "DIR/a.jsonl, row 1: output is empty or not a text"),
        ([{"prompt": "a", "output": "b", "input": ["c"]}], [], "DIR/a.jsonl, row 1: input is empty or not a text"),
        ([{"prompt": "a", "output": "b"}], ["task.output=outptu"], "task.output: DIR/a.jsonl has no column 'outptu'."),
        ([{"prompt": "a", "output": "b"}], [], "task.test_share=0.2 of 1 rows leaves no test row: give more rows"),
        ([{"messages": "hello"}], [], "DIR/a.jsonl, row 1: messages is not a list of messages, such as"),
        ([{"messages": [{"role": "user"}]}], [], "DIR/a.jsonl, row 1, message 1: a message has role and content"),
        ([{"messages": CHAT[:2]}], [], "DIR/a.jsonl, row 1: the last message is not of the assistant"),
        ([{"messages": CHAT[2:3]}], [], "DIR/a.jsonl, row 1, message 1: it is of the assistant, but user and"),
        ([{"messages": [*CHAT, CHAT[0]]}], [], "DIR/a.jsonl, row 1, message 6: a message of the system can only be"),
        ([{"messages": [{"role": "tool", "content": "x"}]}], [], "DIR/a.jsonl, row 1, message 1: role 'tool' is not"),
        ([], [], "DIR/a.jsonl has no rows"),
        (ROWS, ["task.main_metric=loss"], "task.main_metric: there is no metric 'loss'. There are: token_accuracy,"),
    ],
)
def test_a_mistake_is_one_line(rows, overrides, message, tmp_path):
    assert refusal(write(tmp_path / "a.jsonl", rows), *overrides).startswith(message)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no system role') }}", "refuses a conversation (no system role): set task.prompt=alpaca"),
        ("{{ messages | length }}", "writes an answer otherwise than it asks for one: set task.prompt=alpaca"),
    ],
)
def test_a_chat_template_that_does_not_fit_is_refused(template, message, tmp_path, tokenizer):
    tokenizer.chat_template = template
    task = load(write(tmp_path / "a.jsonl"))
    with pytest.raises(UserError) as refused:
        task.preprocess(tokenizer)
    assert message in str(refused.value)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"task.prompt=chat: the model's tokenizer has no chat template"):
        load(tmp_path / "a.jsonl", "task.prompt=chat").preprocess(tokenizer)


def test_the_small_model_reads_any_letter_and_writes_it_again():
    from flexlora.tiny.models.tiny_writer import corpus, tokenizer

    read = tokenizer()
    text = "Turn it around:\n\tA {red} dog, 5 %?"
    assert read.decode(read(text)["input_ids"], skip_special_tokens=True) == text
    (pieces,) = corpus(0, 1)
    assert [after for _, after in pieces[:-1]] == [letter for letter, _ in pieces[1:]]
