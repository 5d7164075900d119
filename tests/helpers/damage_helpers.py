"""Random damage to a file's bytes, and what a reader answers to it."""

from collections.abc import Callable
from random import Random
from typing import Any

from fuzz_helpers import bounded

from flexlora.errors import UserError


def damaged(draw: Random, content: bytes, other: bytes) -> bytes:
    """`content` after one to three accidents; `other` is what a file that was swapped for it holds."""
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        content = _damaged_once(draw, content, other)
    return content


def _damaged_once(draw: Random, content: bytes, other: bytes) -> bytes:
    start = draw.randint(0, len(content))
    block = content[start : start + draw.choice([1, 1, 4, 16, 64, 512])]
    before, after = content[:start], content[start + len(block) :]
    kind = draw.randint(0, 12)
    if kind < 3:
        flipped = bytes(byte ^ (1 << draw.randint(0, 7)) for byte in block[:1])
        return before + flipped + content[start + 1 :]
    if kind == 3:
        return before + draw.randbytes(len(block)) + after
    if kind == 4:
        return before + bytes(len(block)) + after
    if kind == 5:
        return before + block + block + after
    if kind == 6:
        return before + after
    if kind == 7:
        return draw.choice([before, after])
    if kind == 8:
        return before + draw.choice(INSERTED) + draw.choice([block + after, after])
    if kind < 12:
        return before + bytes(draw.choices(LIKELY, k=1)) + content[start + 1 :]
    return draw.choice([other, content + other, b""])


LIKELY = b"0123456789.-eE+\"',:{}[]\t\n\r ntf"


INSERTED = [
    b"\n", b"\r", b"\r\n", b"\t", b'"', b"\\", b"\0", b"\xff", b"\xef\xbb\xbf", b",", b"[", b"]", b"{", b"}", b"null",
    b"NaN", b"1e999", b"-1", b"2", b"9" * 30, b"9" * 5000, b"\\ud800", b"\xed\xa0\x80", "\u2028\x85\x0b".encode(),
    b"true", b"${", b"${x}", b"[" * 5000, b'{"a":' * 3000, b"<<: *a", b"&a [*a]", b"!!binary aaaa", b"2001-01-01",
    b"? [a]", b"---\n", b"\x1b[2J", b'"label": 1, ', b'"status": "done", ', b"0x10", b"1_0", b"\xd9\xa1", b" 1",
]  # fmt: skip


def answer(read: Callable[..., Any], *arguments: Any) -> Any:
    """What `read` gives, or its refusal: one line that says something."""
    refusal = None
    try:
        with bounded():
            return read(*arguments)
    except UserError as error:
        refusal = error
    assert str(refusal).isprintable()
    assert len(str(refusal)) > 20
    return refusal
