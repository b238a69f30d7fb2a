"""The turns of a text that is there as token ids only: split where the target's template begins a turn."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, pairwise

from harness.load.model import Loaded

_SAID = ("xfirstquestionx", "xfirstanswerx", "xsecondquestionx")


def turns_of(loaded: Loaded) -> Callable[[Sequence[int], Sequence[bool]], tuple[list[tuple[str, str]], bool]]:
    """A function of (ids [n], asked [n]) -> ([(role, text), ..], whether the target's template wrote them).

    The template's words and all special tokens are taken out of the texts. Text of another template is split where `asked`
    changes, and its template's words stay in: a user's turn is then what is not asked.
    """
    special = sorted({*loaded.tokenizer.all_special_tokens, *loaded.tokenizer.get_added_vocab()}, key=len, reverse=True)
    marks = _marks(loaded, special)
    gone = re.compile("|".join(map(re.escape, special)) or r"(?!)")

    def text_of(ids: Sequence[int]) -> str:
        return str(loaded.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def turns(ids: Sequence[int], asked: Sequence[bool]) -> tuple[list[tuple[str, str]], bool]:
        found = list(_at(marks, text_of(ids))) if marks is not None else []
        is_known = any(role == "assistant" for role, _ in found)
        if not is_known:
            spans = groupby(zip(ids, asked, strict=True), lambda pair: pair[1])
            found = [("assistant" if is_asked else "user", text_of([i for i, _ in span])) for is_asked, span in spans]
        cleared = [(role, gone.sub(" ", text)) for role, text in found]
        return [(role, text) for role, text in cleared if text.strip()], is_known

    return turns


def _at(marks: re.Pattern[str], text: str) -> Iterator[tuple[str, str]]:
    """(role, text) of each turn. What stands before the first mark is the system's if a user's turn follows, else a user's."""
    found = list(marks.finditer(text))
    if not found:
        return
    yield ("system" if found[0]["user"] else "user"), text[: found[0].start()]
    for mark, after in pairwise([*found, None]):
        assert mark is not None
        yield ("user" if mark["user"] else "assistant"), text[mark.end() : after.start() if after else len(text)]


def _marks(loaded: Loaded, special: Sequence[str]) -> re.Pattern[str] | None:
    """What the template writes where a turn begins, a user's in the group `user`; None where it writes nothing there."""
    rendered = loaded.render(list(zip(("user", "assistant", "user"), _SAID, strict=True)))
    between = re.split("|".join(_SAID), rendered)
    if len(between) != len(_SAID) + 1:
        return None
    opening, answer, again, last = between
    # other words of a system's may stand before the first question, so what both openings end in is a mark of its own
    common = os.path.commonprefix([opening[::-1], again[::-1]])[::-1]
    eos = loaded.tokenizer.eos_token
    user, assistant = (
        "|".join(dict.fromkeys(p for text in texts if (p := _pattern(text, special, eos))))
        for texts in ((opening, again, common), (answer, last))
    )
    return re.compile(f"(?P<user>{user})|{assistant}") if user and assistant else None


def _pattern(text: str, special: Sequence[str], eos: object) -> str:
    """A mark whatever the spaces in it: decoding need not give those of the template back. Where it begins with the end of the
    turn before, that need not be there."""
    parts = [x for x in re.split(rf"({'|'.join(map(re.escape, special))}|\s+)" if special else r"(\s+)", text) if x.strip()]
    ends = bool(parts[1:]) and parts[0] == eos
    pattern = r"\s*".join(map(re.escape, parts[ends:]))
    return rf"(?:{re.escape(parts[0])}\s*)?{pattern}" if ends else pattern
