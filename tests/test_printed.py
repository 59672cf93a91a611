"""What chapters print: lines that fit, and refusals that cannot be pretended."""

from __future__ import annotations

import pytest

from pkg.printed import PHONE, print_refusals, refusal, wrapped


def test_lines_fit_a_phone_and_lose_no_word():
    text = " ".join(f"word{k}" for k in range(40))
    lines = wrapped(text, indent="    ").splitlines()
    assert max(map(len, lines)) <= PHONE
    assert all(line.startswith("    word") for line in lines[1:])
    assert " ".join(line.strip() for line in lines) == text


def test_what_is_accepted_is_no_refusal():
    with pytest.raises(AssertionError, match="not refused, and gave 3"):
        refusal(lambda: int("3"))
    with pytest.raises(AssertionError, match="not refused"):
        print_refusals([lambda: None])


def test_another_error_is_a_mistake_and_no_refusal():
    with pytest.raises(ZeroDivisionError):
        refusal(lambda: 1 / 0)


def test_refusals_are_printed_with_their_names_or_a_dash(capsys):
    def refuse():
        raise TypeError("x must be a tensor")

    print_refusals({"a list": refuse})
    print_refusals([refuse, refuse])
    assert capsys.readouterr().out == "a list: x must be a tensor\n" + 2 * "- x must be a tensor\n"
