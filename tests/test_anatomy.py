"""Error anatomy on sums that a person can check."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdbench.predictions import score
from cdbench.report.anatomy import KINDS, anatomy, carries, kind_of


@pytest.mark.parametrize(
    ("prompt", "into"),
    [
        ("12+34=", set()), ("27+64=", {1}), ("95+7=", {1, 2}), ("60+70=", {2}), ("999+1=", {1, 2, 3}),
        ("64-27=", {1}), ("64-21=", set()), ("100-1=", {1, 2}), ("27-64=", {1}), ("0+0=", set()),
    ],
)  # fmt: skip
def test_carries_and_borrows_are_those_of_column_arithmetic(prompt: str, into: set[int]) -> None:
    assert carries(prompt) == into


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_sum_is_the_sum_of_its_digits_and_its_carries(a: int, b: int) -> None:
    into = carries(f"{a}+{b}=")
    assert into is not None
    digits = sum(int(d) for d in str(a)) + sum(int(d) for d in str(b)) - sum(int(d) for d in str(a + b))
    assert digits == 9 * len(into)  # each carry turns ten units into one ten


@pytest.mark.parametrize("prompt", ["The sum of 1 and 2 is ", "1+2+3=", "a+b=", "1+2", "9" * 500 + "+1="])
def test_other_prompts_have_no_carries_to_tell(prompt: str) -> None:
    assert carries(prompt) is None


@pytest.mark.parametrize(
    ("prompt", "answer", "text", "kind"),
    [
        ("27+64=", "91", "91", None),
        ("27+64=", "91", "eh", "no integer"),
        ("27+64=", "91", "", "no integer"),
        ("27+64=", "91", "81", "carry"),  # the carry out of 7+4 dropped
        ("12+34=", "46", "56", "carry"),  # one made up
        (
            "27+64=",
            "91",
            "101",
            "several digits",
        ),  # ten too many where there is a carry already: 0 for 9 and a digit more
        ("27+64=", "91", "71", "tens"),
        ("27+64=", "91", "93", "units"),
        ("60+70=", "130", "30", "carry"),  # the hundred is the carry
        ("160+70=", "230", "430", "hundreds and up"),
        ("27+64=", "91", "18", "several digits"),
        ("64-27=", "37", "47", "carry"),  # the borrow forgotten
        ("64-21=", "43", "33", "carry"),  # one made up
        ("27-64=", "-37", "37", "sign"),
        ("27-64=", "-37", "-47", "carry"),
        ("27-64=", "-37", "38", "several digits"),
        ("sum of 27 and 64: ", "91", "81", "tens"),  # nothing is known of the carries
        ("27+64=", "91", "9" * 5000, "several digits"),
        ("what?", "yes", "12", "several digits"),
        ("27+64=", "91", "091", "written otherwise"),
        ("27+64=", "91", "٩١", "written otherwise"),
    ],
)
def test_each_wrong_answer_has_the_kind_that_a_teacher_would_give_it(
    prompt: str, answer: str, text: str, kind: str | None
) -> None:
    assert kind_of(score(prompt, answer, text)) == kind


def test_every_wrong_answer_is_of_one_kind_and_the_counts_add_up() -> None:
    run = [score(f"{a}+{b}=", str(a + b), str(a + b + (a % 3))) for a in range(30) for b in range(10)]
    found = anatomy([{"test": run}, {"test": run}])
    assert found is not None and list(found.kinds) == list(KINDS)
    assert sum(found.kinds.values()) == sum(not p.correct for p in run) == 200
    assert sum(n for n, _ in found.by_carries.values()) == found.problems == 300
    assert anatomy([]) is None and anatomy([{"shift_x": run}]) is None
