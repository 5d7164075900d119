"""The protocol's texts (AGI-Edgerunners/LLM-Adapters 8166572), to the blank.

Its two scripts differ in blanks: finetune.py ends the first line with two of them, commonsense_evaluate.py with one,
and only finetune.py indents its empty lines. A model is trained on the one and tested with the other, by everyone who
follows the protocol; so it is here.
"""

from flexlora.tasks.commonsense_rows import Row

RESPONSE = "### Response:"
"""What the protocol cuts a model's text at."""

_INDENT = " " * 16
_PLAIN = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)


def training_text(row: Row, output: str) -> str:
    """A row with its `output` as finetune.py makes it: what is trained on."""
    sections = [("### Instruction:", row["instruction"])]
    if row["input"]:
        sections.append(("### Input:", row["input"]))
    begin = f"{_WITH_INPUT} \n\n" if row["input"] else f"{_PLAIN}  \n\n"
    return begin + _joined([*sections, (RESPONSE, output)], empty=_INDENT)


def evaluation_prompt(row: Row) -> str:
    """A row as commonsense_evaluate.py asks it: it leaves the row's input out, which is empty in all eight sets."""
    return f"{_PLAIN} \n\n" + _joined([("### Instruction:", row["instruction"]), (RESPONSE, "")], empty="")


def answer_sentence(option: str) -> str:
    """The output of every row of the training set whose answer is `option`."""
    return f"the correct answer is {option}"


def _joined(sections: list[tuple[str, str]], empty: str) -> str:
    """Headings and texts, each on an indented line of its own, with a line between sections that holds `empty`."""
    return f"\n{empty}\n".join(f"{_INDENT}{heading}\n{_INDENT}{text}" for heading, text in sections)
