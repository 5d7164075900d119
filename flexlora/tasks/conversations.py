"""The rows of `task=instructions` as conversations: instruction, input and output, or a list of chat messages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flexlora.errors import UserError
from flexlora.settings import InstructionsTask
from flexlora.tasks.own_files import Part, has, require
from flexlora.tasks.tables import Table
from flexlora.text_files import HALF_LETTER

Message = Mapping[str, str]
"""`role` (`system`, `user` or `assistant`) and `content`, as chat templates take them."""
Conversation = list[Message]

# The names that data sets use for a column, the preferred one first.
MESSAGES = ("messages", "conversations", "conversation")
INSTRUCTIONS = ("instruction", "prompt", "question", "query")
INPUTS = ("input", "context")
OUTPUTS = ("output", "response", "completion", "answer")
# The keys of a message, and its roles: those of chat templates, and those of ShareGPT.
KEYS = (("role", "content"), ("from", "value"))
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


@dataclass(frozen=True)
class Columns:
    """The columns that are read: `messages`, or the others. `input` None: no row has a further input."""

    messages: str | None = None
    instruction: str | None = None
    input: str | None = None
    output: str | None = None

    def facts(self) -> dict[str, str]:
        """Return the columns for the record."""
        return {name: column for name, column in vars(self).items() if column is not None}


def find_columns(settings: InstructionsTask, parts: Mapping[str, Part]) -> Columns:
    """Return the columns that the settings name, or whose names are usual. Every table must have them.

    Raises:
        UserError: a column that is needed or named is missing.
    """
    tables = [entry for part in parts.values() for entry in part.tables]
    path, table = tables[0]
    messages = settings.messages or _usual(MESSAGES, table)
    if messages is not None and settings.instruction is None:
        found = Columns(messages=messages)
    else:
        instruction = settings.instruction or _usual(INSTRUCTIONS, table)
        output = settings.output or _usual(OUTPUTS, table)
        if instruction is None or output is None:
            missing = "instruction" if instruction is None else "output"
            raise UserError(
                f"{path} has neither chat messages ({', '.join(MESSAGES)}) nor an instruction "
                f"({', '.join(INSTRUCTIONS)}) with an output ({', '.join(OUTPUTS)}): set task.{missing}=COLUMN. "
                f"{has(table)}"
            )
        given = settings.input or _usual(INPUTS, table)
        found = Columns(None, instruction, None if given in (instruction, output) else given, output)
    for path, table in tables:
        for name, column in found.facts().items():
            require(column, f"task.{name}", path, table)
    return found


def _usual(names: Sequence[str], table: Table) -> str | None:
    return next((name for name in names if name in table.columns), None)


def conversations(part: Part, columns: Columns) -> list[Conversation]:
    """Return the conversation of each row. It ends with an answer of the assistant.

    Raises:
        UserError: a row is broken. The message names the file and the row.
    """
    if columns.messages is not None:
        return [_of_messages(value, where, columns.messages) for where, value in part.values(columns.messages)]
    assert columns.instruction is not None
    assert columns.output is not None
    rows = zip(
        part.values(columns.instruction),
        part.values(columns.output),
        part.values(columns.input) if columns.input is not None else [("", None)] * part.rows,
        strict=True,
    )
    found = []
    for (where, asked), (_, answer), (_, more) in rows:
        question = _text(asked, where, columns.instruction)
        if more is not None and more != "":
            question = f"{question}\n\n{_text(more, where, columns.input or '')}"
        found.append([_message("user", question), _message("assistant", _text(answer, where, columns.output))])
    return found


def _of_messages(value: Any, where: str, column: str) -> Conversation:
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: {column} is not a list of messages, such as {{role: user, content: Hello}}")
    found: Conversation = []
    for number, message in enumerate(value, start=1):
        place = f"{where}, message {number}"
        role_key, text_key = next((keys for keys in KEYS if _has_keys(message, keys)), (None, None))
        if role_key is None or text_key is None:
            raise UserError(f"{place}: a message has role and content, or from and value")
        role = ROLES.get(str(message[role_key]))
        if role is None:
            raise UserError(f"{place}: {role_key} '{message[role_key]}' is not one of {', '.join(ROLES)}")
        if role == "system" and (number > 1 or not message[text_key]):
            if number > 1:
                raise UserError(f"{place}: a message of the system can only be the first one")
            continue
        wanted = "user" if not found or found[-1]["role"] != "user" else "assistant"
        if role not in ("system", wanted):
            raise UserError(f"{place}: it is of the {role}, but user and assistant take turns, the user first")
        found.append(_message(role, _text(message[text_key], place, text_key)))
    if not found or found[-1]["role"] != "assistant":
        raise UserError(f"{where}: the last message is not of the assistant: there is no answer to learn")
    return found


def _has_keys(message: Any, keys: tuple[str, str]) -> bool:
    return isinstance(message, Mapping) and all(message.get(key) is not None for key in keys)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _text(value: Any, where: str, name: str) -> str:
    text = str(value) if isinstance(value, int | float) and not isinstance(value, bool) and value == value else value
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: {name} is empty or not a text: fill it in or remove the row")
    if not text.isascii() and HALF_LETTER.search(text):
        raise UserError(f"{where}: {name} contains half of a surrogate pair")
    return text.strip()
