"""The protocol's prompts (AGI-Edgerunners/LLM-Adapters 8166572), including their exact spaces.

Its two scripts differ in their spaces: finetune.py ends the first line with two spaces, commonsense_evaluate.py with
one, and only finetune.py indents empty lines. The published results train with the first and test with the second. We
do the same.
"""

from flexlora.tasks.commonsense_rows import Row

RESPONSE = "### Response:"
"""The protocol reads a model's answer after this heading."""

_INDENT = " " * 16
_PLAIN = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)


def training_text(row: Row, output: str) -> str:
    """Make the training text of a row with `output`, as finetune.py does."""
    sections = [("### Instruction:", row["instruction"])]
    if row["input"]:
        sections.append(("### Input:", row["input"]))
    begin = f"{_WITH_INPUT} \n\n" if row["input"] else f"{_PLAIN}  \n\n"
    return begin + _joined([*sections, (RESPONSE, output)], empty=_INDENT)


def evaluation_prompt(row: Row) -> str:
    """Make the test prompt of a row, as commonsense_evaluate.py does. It omits `input`, which is always empty."""
    return f"{_PLAIN} \n\n" + _joined([("### Instruction:", row["instruction"]), (RESPONSE, "")], empty="")


def answer_sentence(option: str) -> str:
    """The output of a training row whose answer is `option`."""
    return f"the correct answer is {option}"


def _joined(sections: list[tuple[str, str]], empty: str) -> str:
    """Join headings and texts, each on its own indented line. A line with `empty` separates the sections."""
    return f"\n{empty}\n".join(f"{_INDENT}{heading}\n{_INDENT}{text}" for heading, text in sections)
