"""The causal model of column-wise arithmetic, counterfactuals, contrasts, interchange interventions."""

from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from cdbench.api import Example
from cdbench.circuits.arithmetic import (
    KINDS,
    VARIABLES,
    Variable,
    alternatives,
    answer_with,
    carry,
    make_pairs,
    operator,
    solve,
    value_of,
    with_operands,
)
from cdbench.circuits.contrasts import make_contrasts
from cdbench.circuits.interchange import best_node, interchange_hits, make_interchanges
from cdbench.data import layout
from cdbench.discover import make_task
from cdbench.errors import UserError
from cdbench.tokens import prompt_ids
from cdbench.zoo import make_tokenizer
from circuit_models import llama, naive_outputs

two_digits = st.integers(0, 99)


def sum_of(a: int, b: int) -> Example:
    return Example(f"{a}+{b}=", str(a + b), (a, b))


def difference_of(a: int, b: int) -> Example:
    return Example(f"{a}-{b}=", str(a - b), (a, b))


def test_prompts_of_another_wording_are_of_another_layout() -> None:
    """Of as many tokens, with operands as long: an operator would stand in for a digit."""
    one, other = Example("11+12=", "23", (11, 12)), Example("=11+12", "23", (11, 12))
    encode_text = lambda text: list(range(len(text)))  # noqa: E731
    assert layout(one, encode_text) != layout(other, encode_text)
    assert layout(one, encode_text) == layout(Example("45+99=", "144", (45, 99)), encode_text)


def test_problems_are_exchanged_with_those_of_the_same_layout_alone() -> None:
    """5+23= and 23+5= have as many tokens, but where one has its plus the other has a digit."""
    examples = [sum_of(a, b) for a in range(1, 30, 3) for b in range(2, 30, 5)]
    assert {len(e.prompt) for e in examples} == {4, 5, 6}
    encoded = lambda text: prompt_ids(make_tokenizer(), text)  # noqa: E731
    pairs = [*make_pairs(examples, "random", encoded, Random(0))[0]]
    pairs += make_interchanges(make_tokenizer(), examples, "ones_carry", Random(0)).pairs
    assert len(pairs) > 60
    for clean, other in pairs:
        assert clean.prompt.index("+") == other.prompt.index("+") and len(clean.prompt) == len(other.prompt)


def test_carries_by_hand() -> None:
    assert carry(27, 64, "+", 0) == 1  # 7 + 4 = 11
    assert carry(27, 64, "+", 1) == 0  # 2 + 6 + 1 = 9
    assert carry(20, 61, "+", 0) == 0
    assert carry(95, 5, "+", 1) == 1  # 9 + 0 + 1 = 10: the carry runs through
    assert carry(42, 17, "-", 0) == 1  # 2 − 7 borrows
    assert carry(42, 17, "-", 1) == 0
    assert carry(17, 42, "-", 0) == 1  # −(42 − 17), worked out as 42 − 17
    assert carry(21, 28, "-", 0) == 0  # −(28 − 21)


def test_the_example_of_mib() -> None:
    """27+64 -> 20+61: the ones digit of the sum stays, the carry flips."""
    assert (20, 61) in alternatives(sum_of(27, 64), "ones_carry")
    assert answer_with(27, 64, "+", "ones_carry", 0) == 81


def test_interventions_by_hand() -> None:
    assert answer_with(12, 34, "+", "ones_op1", 9) == 19 + 34
    assert answer_with(12, 34, "+", "tens_op2", 8) == 12 + 84
    assert answer_with(12, 34, "+", "ones_carry", 1) == 56
    assert answer_with(60, 60, "+", "tens_carry", 0) == 20
    assert answer_with(42, 17, "-", "ones_carry", 0) == 35  # 42 − 17 = 25 with a borrow; without, 35
    assert answer_with(17, 42, "-", "ones_carry", 0) == -35
    assert answer_with(21, 28, "-", "ones_carry", 1) == 3  # −(28 − 21 − 10)


@given(two_digits, two_digits, st.sampled_from(["ones_carry", "tens_carry"]), st.sampled_from([0, 1]))
def test_a_borrow_is_the_same_whichever_operand_is_larger(a: int, b: int, variable: Variable, value: int) -> None:
    assert value_of(a, b, "-", variable) == value_of(b, a, "-", variable)
    assert answer_with(a, b, "-", variable, value) == -answer_with(b, a, "-", variable, value) or a == b


@given(two_digits, two_digits)
def test_all_columns_with_their_borrows_make_the_difference(a: int, b: int) -> None:
    """Also of a negative one, whose columns are those of the larger less the smaller."""
    high, low, borrow = max(a, b), min(a, b), carry(a, b, "-", 0)
    ones = high % 10 - low % 10 + 10 * borrow
    assert 0 <= ones <= 9
    assert ones + 10 * (high // 10 - low // 10 - borrow) == abs(a - b)


@given(two_digits, two_digits, st.sampled_from(["+", "-"]), st.sampled_from(VARIABLES))
def test_setting_a_variable_to_its_own_value_changes_nothing(a: int, b: int, op: str, variable: Variable) -> None:
    value = value_of(a, b, op, variable)  # type: ignore[arg-type]
    assert answer_with(a, b, op, variable, value) == solve(a, b, op)  # type: ignore[arg-type]


@given(two_digits, two_digits, two_digits, two_digits)
def test_all_columns_with_their_carries_make_the_sum(a: int, b: int, c: int, d: int) -> None:
    """The causal model is a model of addition: from digits and carries alone comes the answer."""
    ones = (a % 10 + b % 10) % 10
    tens = (a // 10 + b // 10 + carry(a, b, "+", 0)) % 10
    assert ones + 10 * tens + 100 * carry(a, b, "+", 1) == a + b
    # And with the carry of another problem: the tens are that carry's, the ones stay.
    other = answer_with(a, b, "+", "ones_carry", carry(c, d, "+", 0))
    assert other % 10 == ones
    assert other // 10 == a // 10 + b // 10 + carry(c, d, "+", 0)


@given(two_digits, two_digits, st.sampled_from(VARIABLES), st.booleans())
def test_alternatives_differ_in_their_variable_and_keep_what_they_must(
    a: int, b: int, kind: Variable, minus: bool
) -> None:
    example = difference_of(a, b) if minus else sum_of(a, b)
    op = operator(example)
    for x, y in alternatives(example, kind):
        assert [len(str(x)), len(str(y))] == [len(str(a)), len(str(b))]
        assert value_of(x, y, op, kind) != value_of(a, b, op, kind)
        if kind.endswith("op1"):
            assert y == b
        if kind == "ones_carry":
            assert (x // 10, y // 10) == (a // 10, b // 10)
            assert abs(solve(x, y, op)) % 10 == abs(solve(a, b, op)) % 10
            assert (solve(x, y, op) < 0) == (solve(a, b, op) < 0)


def test_a_sum_that_ends_in_nine_without_a_carry_has_no_counterpart() -> None:
    assert alternatives(sum_of(14, 25), "ones_carry") == []  # 9 with a carry would be 19


def test_other_operands_go_where_the_old_ones_stood() -> None:
    example = Example("The sum of 12 and 34 is ", "46", (12, 34))
    assert with_operands(example, 56, 78) == Example("The sum of 56 and 78 is ", "134", (56, 78))
    with pytest.raises(UserError, match="does not hold just the operands"):
        with_operands(Example("twelve and 34 is ", "46", (12, 34)), 1, 2)
    with pytest.raises(UserError, match="no sum and no difference"):
        operator(Example("3*4=", "12", (3, 4)))


@pytest.mark.parametrize(
    ("prompt", "op"),
    [
        ("21-0=", "-"),
        ("21+0=", "+"),
        ("21 − 0 = ", "-"),
        ("What is 21 minus 0? ", "-"),
        ("The difference between 21 and 0 is ", "-"),
        ("Subtract 0 from 21: ", "-"),
        ("The sum of 21 and 0 is ", "+"),
        ("Add the two-digit numbers 21 and 0: ", "+"),
        ("21 – 0 = ", "-"),
        ("21 less 0 is ", "-"),
    ],
)
def test_where_sum_and_difference_are_equal_the_prompt_says_which(prompt: str, op: str) -> None:
    assert operator(Example(prompt, "21", (21, 0))) == op
    assert operator(difference_of(0, 21)) == "-"  # −21 is no sum of them


@pytest.mark.parametrize("prompt", ["21, 0: ", "The sum, not the difference, of 21 and 0: "])
def test_where_the_prompt_says_neither_or_both_it_is_refused(prompt: str) -> None:
    with pytest.raises(UserError, match="may be a sum or a difference"):
        operator(Example(prompt, "21", (21, 0)))
    assert operator(Example(prompt, "24", (21, 3))) == "+"


def test_every_problem_of_the_subtraction_tasks_is_a_difference() -> None:
    for name in ("subtraction_2digit", "subtraction_5digit"):
        task, rng = make_task(name), Random(0)
        assert {operator(task.draw(rng)) for _ in range(4000)} == {"-"}


@pytest.mark.parametrize("in_front", [False, True])
def test_where_digits_are_joined_numbers_begin_and_end_at_the_same_tokens(in_front: bool) -> None:
    """13|+|5|7 and 1|7|+|57 are as long, and a plus would stand in for a digit."""
    joined = Tokenizer(models.BPE(vocab=_JOINING, merges=[("1", "3"), ("5", "7")]))
    if in_front:  # as Llama-2's: "▁" and "<s>" make up for two joined pairs in the count
        joined.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        joined.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 15)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=joined, eos_token="</s>")
    encoded = lambda text: prompt_ids(tokenizer, text)  # noqa: E731
    one, other = sum_of(13, 75), sum_of(31, 57)
    assert len(encoded(one.prompt)) == len(encoded(other.prompt)) == (7 if in_front else 5)
    assert layout(one, encoded) != layout(other, encoded)
    assert layout(one, encoded) == layout(sum_of(13, 35), encoded)
    examples = [sum_of(a, b) for a in (13, 31, 17, 71) for b in (57, 75, 35, 53)]
    pairs, _ = make_pairs(examples, "random", encoded, Random(0))
    plus = encoded("+")[0]
    assert len(pairs) > 8
    for clean, counterfactual in pairs:
        assert encoded(clean.prompt).index(plus) == encoded(counterfactual.prompt).index(plus)


_JOINING = {"</s>": 0, "+": 1, "=": 2, **{str(i): 3 + i for i in range(10)}, "13": 13, "57": 14, "<s>": 15, "▁": 16}


def lengths(text: str) -> list[int]:
    return prompt_ids(make_tokenizer(), text)


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_have_equal_length_and_what_has_none_is_counted(kind: str) -> None:
    draw = Random(0)
    examples = [sum_of(draw.randint(0, 99), draw.randint(0, 99)) for _ in range(60)]
    pairs, without = make_pairs(examples, kind, lengths, Random(1))  # type: ignore[arg-type]
    assert len(pairs) + without == 60
    assert all(len(lengths(clean.prompt)) == len(lengths(other.prompt)) for clean, other in pairs)
    assert make_pairs(examples, kind, lengths, Random(1)) == (pairs, without)  # type: ignore[arg-type]


def test_answers_are_contrasted_at_the_first_token_that_differs() -> None:
    tokenizer = make_tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in "0123456789"}
    made = make_contrasts(
        tokenizer,
        [(sum_of(12, 34), sum_of(12, 29)), (sum_of(12, 34), sum_of(72, 74)), (sum_of(10, 34), sum_of(40, 14))],
    )
    # 46 against 41: "4" stands after both, then "6" against "1". 46 against 146: "4" against "1". 44 against 54: "4" against "5".
    assert made.correct.tolist() == [ids["6"], ids["4"], ids["4"]]
    assert made.other.tolist() == [ids["1"], ids["1"], ids["5"]]
    assert made.last.tolist() == [6, 5, 5]
    assert made.prompt_last.tolist() == [5, 5, 5]
    assert tokenizer.decode(made.clean[0]) == "12+34=4"
    assert tokenizer.decode(made.corrupt[0]) == "12+29=4"


def test_an_answer_that_begins_the_other_is_contrasted_with_the_end() -> None:
    tokenizer = make_tokenizer()
    made = make_contrasts(tokenizer, [(sum_of(10, 34), Example("40+04=", "4", (40, 4)))])
    assert made.correct.tolist() == [tokenizer.convert_tokens_to_ids("4")]
    assert made.other.tolist() == [tokenizer.eos_token_id]


def test_equal_answers_have_no_contrast_and_are_counted() -> None:
    tokenizer = make_tokenizer()
    made = make_contrasts(tokenizer, [(sum_of(12, 34), sum_of(34, 12)), (sum_of(12, 34), sum_of(12, 35))])
    assert (len(made), made.without_contrast) == (1, 1)
    with pytest.raises(UserError, match="none of 1 pairs has two answers that differ"):
        make_contrasts(tokenizer, [(sum_of(12, 34), sum_of(34, 12))])


def test_prompts_of_different_length_are_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"'12\+34=' has 6 tokens and its counterfactual '1\+34=' 5"):
        make_contrasts(make_tokenizer(), [(sum_of(12, 34), sum_of(1, 34))])


@pytest.mark.parametrize("variable", VARIABLES)
def test_sources_differ_in_the_variable_and_copying_is_never_right(variable: Variable) -> None:
    draw = Random(3)
    examples = [sum_of(draw.randint(0, 99), draw.randint(0, 99)) for _ in range(80)]
    made = make_interchanges(make_tokenizer(), examples, variable, Random(4))
    assert len(made) == len(made.pairs) == len(made.expected) > 40
    for (base, source), expected in zip(made.pairs, made.expected, strict=True):
        assert expected not in (base.answer, source.answer)
        value = value_of(*source.operands, "+", variable)
        assert value != value_of(*base.operands, "+", variable)
        assert int(expected) == answer_with(*base.operands, "+", variable, value)


def test_sources_of_the_control_share_the_variable_and_nothing_is_expected_to_change() -> None:
    draw = Random(3)
    examples = [sum_of(draw.randint(0, 99), draw.randint(0, 99)) for _ in range(80)]
    made = make_interchanges(make_tokenizer(), examples, "ones_carry", Random(4), same=True)
    assert len(made) > 60
    for (base, source), expected in zip(made.pairs, made.expected, strict=True):
        assert expected == base.answer != source.answer
        assert value_of(*source.operands, "+", "ones_carry") == value_of(*base.operands, "+", "ones_carry")
    with pytest.raises(UserError, match="no two of 1 problems have the same 'ones_carry'"):
        make_interchanges(make_tokenizer(), [sum_of(1, 2)], "ones_carry", Random(0), same=True)


def test_an_exchange_happens_on_the_prompt_alone_and_leaves_the_answer_be() -> None:
    """Held against hooks: one node's output is the source's where the prompt stands, the base's own where the answer does."""
    model = llama()
    draw = Random(3)
    examples = [sum_of(draw.randint(0, 99), draw.randint(0, 99)) for _ in range(30)]
    made = make_interchanges(make_tokenizer(), examples, "ones_op1", Random(4))
    own, other = naive_outputs(model, made.base.ids), naive_outputs(model, made.source)
    prompt = torch.arange(made.base.ids.shape[1])[None] <= made.base.last_prompt[:, None]
    mixed = {"m1": None, "a1.h3": torch.where(prompt[:, :, None], other["a1.h3"], own["a1.h3"])}
    from circuit_models import hooked

    def exchange(module: object, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        z = args[0].clone()
        z[..., 12:16] = mixed["a1.h3"]
        return (z,)

    with torch.no_grad(), hooked(model, [(model.model.layers[1].self_attn.o_proj, True, exchange)]):
        logits = model(input_ids=made.base.ids).logits
    rows = torch.arange(len(made))[:, None]
    predicted = logits[rows, made.base.answer_positions].argmax(-1)
    # Random weights never give the causal model's answer: on every other pair what they do give is taken for it.
    filler = made.base.answer_tokens == -100
    tokens = torch.where(~filler & (rows % 2 == 0), predicted, made.base.answer_tokens)
    made = replace(made, base=replace(made.base, answer_tokens=tokens))
    hits = interchange_hits(model, made, [9], work_of(7))[:, 0]
    assert torch.equal(hits, ((predicted == tokens) | filler).all(1))
    assert 0 < hits.sum() < len(made)


def work_of(batch: int):  # type: ignore[no-untyped-def]
    from cdbench.circuits.attribution import Work

    return Work(batch_size=batch)


def test_exchanging_all_of_the_input_answers_the_source_and_so_never_scores(world) -> None:  # type: ignore[no-untyped-def]
    """With every embedding of the prompt exchanged the model sees the source; that is copying, and pairs leave it out."""
    workspace = world.workspace(build=False)
    made = make_interchanges(workspace.tokenizer, workspace.train_examples, "tens_op1", Random(0))
    hits = interchange_hits(workspace.teacher.model(), made, [0])[:, 0]
    from cdbench.tokens import encode
    from cdbench.zoo import exact_match

    # What it answers is the source's answer, where the model knows it: then it cannot be the one expected.
    sources = encode(workspace.tokenizer, [source for _, source in made.pairs])
    knows = exact_match(workspace.teacher.model(), sources)
    assert knows.any() and not bool((hits & knows).any())


def test_the_best_node_is_chosen_on_one_half_and_judged_on_the_other() -> None:
    """On the first half the first column is better (2 hits to 1), over all rows the second (3 to 2)."""
    hits = torch.tensor([[1, 1], [1, 0], [0, 1], [0, 1]], dtype=torch.bool)
    best, judged = best_node(hits)
    assert best == 0
    assert judged.tolist() == [False, False]


def test_every_problem_that_has_a_source_gets_one() -> None:
    """One problem with a carry among sixty without: it is a source for all of them, and all are one for it."""
    examples = [sum_of(10 + i % 5, 20 + i // 5 % 4) for i in range(60)] + [sum_of(19, 19)]
    made = make_interchanges(make_tokenizer(), examples, "ones_carry", Random(0))
    assert len(made) == 61
    assert all(source == sum_of(19, 19) for base, source in made.pairs if base != sum_of(19, 19))


def test_only_problems_that_the_model_solves_are_exchanged(world) -> None:  # type: ignore[no-untyped-def]
    from cdbench.circuits.interchange import solved
    from cdbench.tokens import encode
    from cdbench.zoo import exact_match

    workspace = world.workspace(build=False)
    model, examples = workspace.teacher.model(), workspace.train_examples[:80]
    known = solved(model, workspace.tokenizer, examples)
    assert len(known) == int(exact_match(model, encode(workspace.tokenizer, examples)).sum())


def test_a_carry_of_a_difference_is_flipped_without_flipping_its_sign() -> None:
    """31 − 28 = 3 borrows; 38 − 21 = 17 does not, and both are positive. 21 − 28 would be negative."""
    found = alternatives(difference_of(31, 28), "ones_carry")
    assert found
    assert all(a >= b for a, b in found)
    assert all(a < b for a, b in alternatives(difference_of(21, 28), "ones_carry"))


def test_problems_without_a_source_are_an_error_that_says_so() -> None:
    with pytest.raises(UserError, match="no two of 1 problems differ in 'ones_carry'"):
        make_interchanges(make_tokenizer(), [sum_of(1, 2)], "ones_carry", Random(0))
