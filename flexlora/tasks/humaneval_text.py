"""The texts of HumanEval: prompts, the code in what a model wrote, and the program that checks it.

The instruction is LoRA-GA's (Outsider565/LoRA-GA 7cbdd68, eval_humaneval.py), which GoRA's and RaLoRA's authors use
too. The checking program is human-eval's (openai/human-eval 6d43fb9, execution.py).
"""

import re
from dataclasses import dataclass

from flexlora.settings import CodePrompt
from flexlora.tasks.prompted import Pair

FENCE = "```"

_BEGIN = "Below is an instruction that describes a task"
_END = "Write a response that appropriately completes the request."

# What a model is asked for in training: LoRA-GA's template_wo_input, and CodeAlpaca's template for rows with an input.
WITHOUT_INPUT = f"{_BEGIN}. {_END}\n\n### Instruction:\n{{instruction}}\n\n### Response:\n"
WITH_INPUT = (
    f"{_BEGIN}, paired with an input that provides further context. {_END}\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)

# The instruction of an evaluation, including its exact spaces and line breaks.
INSTRUCTION = f"""\
Complete the following Python code: 
Notes: respond with the entire complete function definition
do not add any comments, be as concise in your code as possible
use only built-in libraries, assume no additional imports other than those provided (if any)
use `    ` (4 spaces) for each level of indentation

code:
{FENCE}python
{{prompt}}
{FENCE}"""  # noqa: W291
EVALUATION = {
    CodePrompt.instruction: f"{_BEGIN}.\n {_END}\n\n### Instruction:\n{INSTRUCTION}\n\n### Response:\n{FENCE}python\n",
    CodePrompt.completion: "{prompt}",
}

# A line that begins a new statement of the module, a comment or the end of a code block.
_TOP_LEVEL = re.compile(r"\n(?=[A-Za-z_@#`])")
_KEPT = ("def ", "async def ", "class ", "@", "import ", "from ")
_OPENING = re.compile(r"\s*```[A-Za-z0-9+]*[ \t]*(?:\n|$)")
# What ends a text, in its newest part: a code block that closes; or, in a completion, the module's next statement.
ENDINGS = {
    CodePrompt.instruction: re.compile(r"\S\s*```"),
    CodePrompt.completion: _TOP_LEVEL,
}


@dataclass(frozen=True)
class Problem(Pair):
    """A function to complete, with what completes the program that checks it."""

    code: str
    """The beginning of the program: imports, the function's head and its docstring."""
    test: str
    entry_point: str
    style: CodePrompt

    def program(self, text: str) -> str:
        """Return the program that ends without an exception if `text`, which a model wrote, is right."""
        return f"{self.code}{code_in(text, self.entry_point, self.style)}\n{self.test}\ncheck({self.entry_point})"


def problem(code: str, solution: str, test: str, entry_point: str, style: CodePrompt) -> Problem:
    """Make the problem of a row of HumanEval: its prompt, canonical solution, test and entry point."""
    output = f"{code}{solution}\n{FENCE}" if style is CodePrompt.instruction else solution
    return Problem(EVALUATION[style].format(prompt=code), output, code, test, entry_point, style)


def first_code_block(answer: str) -> str | None:
    """Cut an answer after its first code block, as LoRA-GA does; None if it has none. An open block is closed."""
    before, fence, rest = answer.partition(FENCE)
    return f"{before}{FENCE}{rest.partition(FENCE)[0]}{FENCE}" if fence else None


def code_in(text: str, entry_point: str, style: CodePrompt) -> str:
    """Return the code in what a model wrote, to follow the problem's own code.

    A completion ends before the module's next statement. An instructed model writes the whole function, in a code block
    that the prompt has opened: what precedes the function stays, and of what follows it only definitions and imports,
    because a call of the function as an example may read input or fail. A text without the function is a body.
    """
    if style is CodePrompt.completion:
        return _TOP_LEVEL.split(text, maxsplit=1)[0]
    opening = _OPENING.match(text)
    code = text[opening.end() if opening else 0 :].partition(FENCE)[0].replace("\t", "    ").rstrip()
    begin = re.search(rf"^(?:async +)?def +{re.escape(entry_point)}\b", code, re.MULTILINE)
    if begin is None:
        return code
    first, *others = _TOP_LEVEL.split(code[begin.start() :])
    return "\n".join([f"{code[: begin.start()]}{first}", *(part for part in others if part.startswith(_KEPT))])
