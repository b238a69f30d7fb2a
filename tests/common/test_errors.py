"""What a user's code may raise."""

from __future__ import annotations

import sys

import pytest

from harness.common.errors import TriedToExit, UserError, in_one_line, unknown, users_code
from harness.common.stopping import Stopped


class Odd(BaseException):
    pass


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Leaves(Exception):
    def __str__(self) -> str:
        raise SystemExit(0)


class IsStopped(Exception):
    def __str__(self) -> str:
        raise Stopped


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit(), Odd("x"), GeneratorExit()], ids=repr)
def test_what_would_end_the_command_is_an_ordinary_error(error: BaseException) -> None:
    with pytest.raises(TriedToExit, match=type(error).__name__) as told, users_code():
        raise error
    assert isinstance(told.value, Exception) and told.value.__cause__ is error


def test_sys_exit_is_an_ordinary_error() -> None:
    with pytest.raises(TriedToExit, match="SystemExit: 0"), users_code():
        sys.exit(0)


@pytest.mark.parametrize("error", [ValueError("x"), UserError("y"), KeyboardInterrupt(), StopIteration()], ids=repr)
def test_other_errors_and_ctrl_c_pass_as_they_are(error: BaseException) -> None:
    with pytest.raises(type(error)) as told, users_code():
        raise error
    assert told.value is error


def test_an_unknown_name_is_shown_in_part_where_it_is_long() -> None:
    assert len(str(unknown("key", "[" * 100_000, ["name"]))) < 300


def test_any_error_is_told_in_one_short_line() -> None:
    assert in_one_line(ValueError("\nits first\tline\nand more")) == "ValueError: its first line"
    assert in_one_line(Mute()) == "Mute" and in_one_line(Leaves()) == "Leaves" and in_one_line(ValueError()) == "ValueError"
    assert len(in_one_line(ValueError("x" * 10_000))) == 300


def test_ctrl_c_while_an_error_is_told_passes() -> None:
    with pytest.raises(Stopped):
        in_one_line(IsStopped())


def test_a_block_of_users_code_that_a_signal_closes_is_no_users_exit() -> None:
    block = users_code().gen  # type: ignore[attr-defined]
    next(block)
    block.close()
    with pytest.raises(TriedToExit, match="GeneratorExit"), users_code():
        raise GeneratorExit
