"""Commonsense170K as a task: the content of a batch, the tokens in the loss, and three evaluation modes."""

import re

import pytest
import torch
from commonsense_helpers import model_settings, rows_of_format, task_settings, words_of_all, write_llama
from torch.nn import functional

from flexlora.errors import UserError
from flexlora.methods.base import RunContext
from flexlora.methods.mask import MaskMethod
from flexlora.methods.peft import peft_config
from flexlora.models import causal_lm
from flexlora.settings import EvaluationMode, Quantization, Schedule
from flexlora.tasks.commonsense import UNPARSED, commonsense
from flexlora.tasks.commonsense_prompts import answer_sentence, evaluation_prompt, training_text
from flexlora.tasks.commonsense_rows import FORMATS, format_of, options_of, read_rows
from flexlora.tasks.language_model import IGNORED
from flexlora.training.batching import epoch_batches, evaluation_batches

MIXED = [row for words in FORMATS for row in rows_of_format(words, 4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def backbone(folder):
    return causal_lm.load(model_settings(folder))


def made(backbone, rows=MIXED, **changes):
    task = commonsense(task_settings(**changes), rows, {"mixed": rows}, {})
    task.preprocess(backbone.processor)
    return task


def whole_batch(task):
    (split,) = task.evaluation
    return task.collate(list(split.examples))


# --- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_length", [12, 256])
def test_a_text_is_cut_at_max_length_and_has_the_end_token_if_it_fits(backbone, max_length):
    task, tokenizer = made(backbone, max_length=max_length), backbone.processor
    for row, example in zip(MIXED, task.train.examples, strict=True):
        ids = tokenizer(training_text(row, row["output"]))["input_ids"]
        ids = [*ids, tokenizer.eos_token_id][:max_length] if len(ids) < max_length else ids[:max_length]
        assert example["input_ids"].tolist() == ids
    assert task.train.lengths == [len(example["input_ids"]) for example in task.train.examples]


def test_real_rows_start_and_end_with_their_special_tokens(shared):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260k")
    tokenizer.padding_side = "left"
    folder = shared / "data" / "commonsense" / "dataset"
    rows = [row for name in ("boolq", "winogrande") for row in read_rows(folder / name / "train.json", name).rows[:40]]
    task = commonsense(task_settings(max_length=300), rows, {"boolq": rows[:2]}, {})
    task.preprocess(tokenizer)
    long = 0
    for row, example in zip(rows, task.train.examples, strict=True):
        text = tokenizer.decode(example["input_ids"], skip_special_tokens=True)
        if len(example["input_ids"]) == 300:
            long += 1
            assert training_text(row, row["output"]).startswith(text[:300])
        else:
            assert text == training_text(row, row["output"])
            assert example["input_ids"][-1] == tokenizer.eos_token_id
    assert 0 < long < len(rows)
    batch = task.collate(list(task.train.examples[:5]))
    width = batch["input_ids"].shape[1]
    assert width % 8 == 0
    for ids, mask, example in zip(batch["input_ids"], batch["attention_mask"], task.train.examples, strict=False):
        length = len(example["input_ids"])
        assert ids[width - length :].tolist() == example["input_ids"].tolist()  # padded on the left
        assert mask.tolist() == [0] * (width - length) + [1] * length
        assert set(ids[: width - length].tolist()) <= {0}


def test_the_loss_covers_the_whole_text(backbone):
    task = made(backbone)
    batch = task.collate(list(task.train.examples[:8]))
    assert torch.equal(batch["labels"] != IGNORED, batch["attention_mask"] == 1)
    with torch.no_grad():
        theirs = backbone.model(**batch).loss
        assert task.loss(backbone.model, batch) == pytest.approx(float(theirs), rel=1e-6)


def test_without_train_on_inputs_the_loss_covers_only_the_answer(backbone):
    task, tokenizer = made(backbone, train_on_inputs=False), backbone.processor
    batch = task.collate(list(task.train.examples[:8]))
    for row, ids, labels in zip(MIXED, batch["input_ids"], batch["labels"], strict=False):
        learned = tokenizer.decode(ids[labels != IGNORED])
        assert learned == f"{row['output']} </s>"
    with torch.no_grad():
        theirs = backbone.model(**batch).loss
        assert task.loss(backbone.model, batch) == pytest.approx(float(theirs), rel=1e-6)


def test_a_batch_without_labels_has_loss_zero(backbone):
    task = made(backbone, train_on_inputs=False, max_length=12)
    with torch.no_grad():
        loss = task.loss(backbone.model, task.collate(list(task.train.examples[:4])))
    assert float(loss) == 0.0


def test_padding_of_real_rows_is_below_ten_percent(shared):
    """The tokenizer has 30,000 subwords, close to LLaMA's lengths. Batches have 16 rows of at most 256 tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "minilm-l6-h384")
    folder = shared / "data" / "commonsense" / "dataset"
    texts = []
    for name in ("ARC-Easy", "boolq", "openbookqa", "winogrande"):
        rows = read_rows(folder / name / "train.json", name).rows
        texts += [training_text(row, row["output"]) for row in rows[:1500]]
    lengths = [min(256, len(ids) + 1) for ids in tokenizer(texts)["input_ids"]]
    batches = epoch_batches(lengths, 16, seed=0, epoch=0)
    padded = sum(8 * -(-max(lengths[i] for i in batch) // 8) * len(batch) for batch in batches)
    assert 1 - sum(lengths) / padded < 0.10


# --- evaluation -------------------------------------------------------------------------------------------------------


def by_protocol(backbone, rows, num_beams, batch_size=3):
    """The loop of commonsense_evaluate.py: rows in order, all new tokens, the first answer word counts."""
    tokenizer, answers = backbone.processor, []
    for first in range(0, len(rows), batch_size):
        batch = rows[first : first + batch_size]
        inputs = tokenizer([evaluation_prompt(row) for row in batch], return_tensors="pt", padding=True)
        output = backbone.model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            num_beams=num_beams,
            do_sample=False,
            max_new_tokens=32,
        )
        for row, text in zip(batch, tokenizer.batch_decode(output, skip_special_tokens=True), strict=True):
            found = re.findall("|".join(format_of(row)), text.split("### Response:")[1].strip())
            answers.append(format_of(row).index(found[0]) if found else UNPARSED)
    return answers


def asked(task, model, batch_size=7):
    (split,) = task.evaluation
    answers = [None] * len(split)
    for indices in evaluation_batches(split.lengths, batch_size):
        with torch.no_grad():
            loss, given = task.predict(model, task.collate([split.examples[i] for i in indices]))
        assert torch.isfinite(loss)
        for i, answer in zip(indices, given.tolist(), strict=True):
            answers[i] = answer
    return answers


@pytest.mark.parametrize("mode", [EvaluationMode.fast, EvaluationMode.protocol])
def test_each_mode_gives_the_answers_of_the_protocols_loop(backbone, mode):
    answers = asked(made(backbone, evaluation_mode=mode), backbone.model)
    assert answers == by_protocol(backbone, MIXED, num_beams=1 if mode is EvaluationMode.fast else 4)
    assert len(set(answers)) > 1  # some texts have an answer, some have none or another one


def test_fast_mode_stops_when_every_row_has_an_answer(backbone, monkeypatch):
    """It does not stop earlier: a row without an answer continues to the last token."""
    from flexlora.tasks import generation

    widths = []
    generate = generation.generate

    def counted(*arguments, **options):
        output = generate(*arguments, **options)
        widths.append(output.shape[1] - arguments[1].shape[1])
        return output

    monkeypatch.setattr("flexlora.tasks.commonsense.generate", counted)
    task = made(backbone, evaluation_mode=EvaluationMode.fast)
    given = asked(task, backbone.model, batch_size=1)
    order = [i for indices in evaluation_batches(task.evaluation[0].lengths, 1) for i in indices]
    by_row = dict(zip(order, widths, strict=True))
    assert UNPARSED in given
    assert any(answer != UNPARSED for answer in given)
    for i, answer in enumerate(given):
        assert (by_row[i] < 32) == (answer != UNPARSED)


def test_the_checkpoints_generation_settings_are_ignored(backbone):
    task = made(backbone, evaluation_mode=EvaluationMode.fast)
    before = asked(task, backbone.model)
    backbone.model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=3.0)
    try:
        assert asked(task, backbone.model) == before
        assert backbone.model.generation_config.do_sample is True
    finally:
        backbone.model.generation_config.update(do_sample=False, temperature=1.0, repetition_penalty=1.0)


def test_likelihood_mode_ranks_only_the_options_of_the_row(backbone):
    """The reference sums the log-probabilities of one unpadded text at a time, in float64."""
    task, tokenizer = made(backbone, evaluation_mode=EvaluationMode.likelihood), backbone.processor
    model = backbone.model.double()
    try:
        answers = asked(task, model)
        for row, answer in zip(MIXED, answers, strict=True):
            weights = {}
            start = len(tokenizer(training_text(row, ""))["input_ids"])
            for option in options_of(row):
                ids = torch.tensor(tokenizer(training_text(row, answer_sentence(option)))["input_ids"])
                with torch.no_grad():
                    chances = functional.log_softmax(model(input_ids=ids[None]).logits[0], dim=-1)
                weights[option] = float(sum(chances[i - 1, ids[i]] for i in range(start, len(ids))))
            assert format_of(row)[answer] == max(weights, key=weights.get)
    finally:
        model.float()


def test_the_evaluation_loss_is_that_of_the_right_answer(backbone):
    for mode in EvaluationMode:
        task, tokenizer = made(backbone, evaluation_mode=mode), backbone.processor
        with torch.no_grad():
            loss, _ = task.predict(backbone.model, whole_batch(task))
        texts = [training_text(row, row["output"]) for row in MIXED]
        starts = [len(tokenizer(training_text(row, ""))["input_ids"]) for row in MIXED]
        total, count = 0.0, 0
        for text, start in zip(texts, starts, strict=True):
            ids = torch.tensor(tokenizer(text)["input_ids"])[None]
            labels = ids.clone()
            labels[:, :start] = IGNORED
            with torch.no_grad():
                total += float(backbone.model(input_ids=ids, labels=labels).loss) * (ids.shape[1] - start)
            count += ids.shape[1] - start
        assert float(loss) == pytest.approx(total / count, rel=1e-4), mode


def test_unparsed_answers_count_as_wrong(backbone):
    task = made(backbone)
    right = [format_of(row).index(row["answer"]) for row in MIXED]
    wrong = [UNPARSED] * 3 + [1 - right[3]] + right[4:]
    scores = task.score(task.evaluation[0], wrong)
    assert scores == {"mixed_accuracy": pytest.approx(1 - 4 / len(MIXED)), "mixed_unparsed": 3.0}
    assert task.aggregate(scores) == {"average": scores["mixed_accuracy"]}


def test_likelihood_mode_has_its_own_metric_names(backbone):
    task = made(backbone, evaluation_mode=EvaluationMode.likelihood)
    assert task.main_metric == "likelihood_average"
    right = [format_of(row).index(row["answer"]) for row in MIXED]
    scores = task.score(task.evaluation[0], right)
    assert scores == {"mixed_likelihood_accuracy": 1.0}
    assert task.aggregate(scores) == {"likelihood_average": 1.0}


def test_the_average_is_the_unweighted_mean_of_the_test_sets(backbone):
    few, many = rows_of_format(FORMATS[0], 2), rows_of_format(FORMATS[4], 10)
    task = commonsense(task_settings(), few, {"boolq": few, "winogrande": many}, {})
    assert task.aggregate({"boolq_accuracy": 1.0, "winogrande_accuracy": 0.5}) == {"average": 0.75}


# --- the backbone -------------------------------------------------------------------------------------------------


def test_a_language_model_pads_on_the_left_and_brings_its_own_head(backbone):
    assert backbone.processor.padding_side == "left"
    assert backbone.head_modules == []
    names = [name for name, _ in backbone.model.named_modules() if re.fullmatch(backbone.target_modules, name)]
    linears = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj")
    assert sorted(names) == sorted(f"model.layers.{layer}.{linear}" for layer in range(2) for linear in linears)


def test_a_tokenizer_without_padding_pads_with_token_0(tmp_path):
    assert causal_lm.load(model_settings(write_llama(tmp_path, pad=False))).processor.pad_token_id == 0


def refused(call):
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path):
    message = refused(lambda: causal_lm.load(model_settings(write_llama(tmp_path, eos=False))))
    assert message.startswith(f"model.path: the tokenizer of {tmp_path} has no end-of-sequence token")


def test_a_folder_without_a_language_model_is_refused(tmp_path, tiny_bert):
    assert "there is no folder" in refused(lambda: causal_lm.load(model_settings(tmp_path / "nowhere")))
    assert "has no config.json" in refused(lambda: causal_lm.load(model_settings(tmp_path)))
    message = refused(lambda: causal_lm.load(model_settings(tiny_bert)))
    assert message.startswith(f"model.path: the tokenizer of {tiny_bert} has no end-of-sequence token")


def test_missing_bitsandbytes_is_refused(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for quantization in Quantization:
        message = refused(lambda q=quantization: causal_lm._packed(model_settings(folder, quantization=q)))
        assert message.startswith(f"model.quantization={quantization.value} needs bitsandbytes, which is not installed")


def test_a_method_that_trains_nothing_is_refused(backbone):
    message = refused(lambda: MaskMethod([], []).wrap(backbone.model))
    assert message == "this method trains a fresh head, but this model has none: choose another method"
    message = refused(lambda: MaskMethod([r".*\.bias"], []).wrap(backbone.model))
    assert message.startswith(r"method.trainable: '.*\.bias' does not match the full name of any parameter")
    backbone.model.requires_grad_(True)


def test_an_unknown_architecture_needs_target_modules():
    context = RunContext(10, Schedule.absolute, None, 0, target_modules=None, task_type="CAUSAL_LM")
    fields = {"peft_type": "LORA", "r": 2, "target_modules": None, "modules_to_save": None}
    message = refused(lambda: peft_config(fields, context))
    assert (
        message == "method.target_modules is not set, and this architecture has no default: name the linears to adapt"
    )
    config, _ = peft_config({**fields, "target_modules": ["c_attn"]}, context)
    assert set(config.target_modules) == {"c_attn"}


def test_the_tokenizer_knows_all_words_of_the_test_rows(backbone):
    """The other tests rely on this: the model knows every word of their rows."""
    assert backbone.processor.unk_token_id not in backbone.processor(" ".join(words_of_all()))["input_ids"]
