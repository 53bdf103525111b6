import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from cdbench import zoo
from cdbench.api import Example, Task
from cdbench.config import DataConfig, Profile, ZooModel, build_profile
from cdbench.data import (
    make_counterfactuals,
    make_length_shift,
    make_pretraining,
    make_splits,
    read_examples,
    twin_class,
    write_examples,
)
from cdbench.discover import make_task
from cdbench.errors import RunFailed, UserError
from cdbench.report import context
from cdbench.store import Store
from cdbench.tokens import Encoded, encode
from cdbench.workspace import Workspace
from circuit_models import llama
from conftest import World, quiet

SMALL_MODEL = ZooModel(layers=1, hidden=16, ffn=16, steps=30, lr=1e-2, batch_size=70)
SMALL = DataConfig(train=400, validation=50, test=100, length_shift=20)


class Wrong(Task):
    def draw(self, rng: random.Random) -> Example:
        a, b = rng.randint(0, 99), rng.randint(0, 99)
        return Example(f"{a}+{b}=", str(a + b + 1), (a, b))


class Fickle(Task):
    def draw(self, rng: random.Random) -> Example:
        return Example(f"what is {rng.randint(0, 9)}?", str(rng.random()), (1,))


class Few(Task):
    def draw(self, rng: random.Random) -> Example:
        a = rng.randint(0, 5)
        return Example(f"{a}+1=", str(a + 1), (a, 1))


@given(st.integers(0, 10_000))
def test_strict_splits_are_full_disjoint_and_keep_twins_on_one_side(seed: int) -> None:
    splits = make_splits(make_task("addition_2digit"), "addition_2digit", SMALL.model_copy(update={"seed": seed}))
    sides = [splits.train, splits.validation, splits.test]
    assert [len(side) for side in sides] == [400, 50, 100]
    assert len({e.prompt for side in sides for e in side}) == 550
    classes = [{twin_class(e) for e in side} for side in sides]
    assert not (classes[0] & classes[1] or classes[0] & classes[2] or classes[1] & classes[2])
    assert splits.leaked == 0


def test_the_papers_split_leaks_twins_and_the_leak_is_counted() -> None:
    config = DataConfig(train=4000, validation=500, test=1000, split="paper")
    splits = make_splits(make_task("addition_2digit"), "addition_2digit", config)
    train = {tuple(sorted(e.operands)) for e in splits.train}
    by_hand = sum(tuple(sorted(e.operands)) in train for e in splits.test)
    # Each test problem's twin lies among the 4,000 of 9,999 others with probability 0.4: errata A11 counts 407.
    assert splits.leaked == by_hand
    assert 350 < splits.leaked < 450


def test_subtraction_has_no_twins_but_of_equal_operands() -> None:
    assert twin_class(Example("5-3=", "2", (5, 3))) != twin_class(Example("3-5=", "-2", (3, 5)))
    assert twin_class(Example("5+3=", "8", (5, 3))) == twin_class(Example("3+5=", "8", (3, 5)))


def test_splits_depend_on_the_seed_and_on_nothing_else() -> None:
    task = make_task("mixed_2to5digit")
    one, two = (make_splits(task, "mixed_2to5digit", SMALL) for _ in range(2))
    other = make_splits(task, "mixed_2to5digit", SMALL.model_copy(update={"seed": 1}))
    assert one == two != other


def test_length_shift_holds_no_twin_of_a_training_problem() -> None:
    # The same task as its own shift is the hardest case: most draws are known problems.
    task = make_task("addition_2digit")
    train = make_splits(task, "addition_2digit", SMALL).train
    shifted = make_length_shift(task, "addition_2digit", SMALL, train)
    assert len(shifted) == 20
    assert not {twin_class(e) for e in shifted} & {twin_class(e) for e in train}


def test_counterfactuals_have_equal_token_length_and_another_answer() -> None:
    examples = make_splits(make_task("addition_2digit"), "addition_2digit", SMALL).test
    found = make_counterfactuals(examples, list, random.Random(0))
    for example, other in zip(examples, found, strict=True):
        assert other is not None
        assert len(other.prompt) == len(example.prompt)
        assert other.answer != example.answer
    alone = make_counterfactuals([Example("1+1=", "2", (1, 1))], list, random.Random(0))
    assert alone == [None]


@pytest.mark.parametrize(
    ("task", "complaint"),
    [
        (Wrong(), "but the answer is"),
        (Fickle(), "answers 'what is"),
        (Few(), "too few different problems"),
    ],
)
def test_a_task_that_contradicts_itself_is_refused(task: Task, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        make_splits(task, "mine", SMALL)


def test_examples_survive_the_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    examples = (Example("1+2=", "3", (1, 2)), Example("7-9=", "-2", (7, 9)))
    write_examples(tmp_path / "x.jsonl", examples)
    assert read_examples(tmp_path / "x.jsonl") == examples


def test_what_zoo_models_know_from_before_holds_no_twin_of_a_held_out_problem() -> None:
    # The task itself as its own pretraining is the hardest case again.
    task = make_task("addition_2digit")
    config = SMALL.model_copy(update={"zoo_tasks": ("addition_2digit",), "zoo_train": 200})
    splits = make_splits(task, "addition_2digit", config)
    heldout = [*splits.validation, *splits.test]
    known = make_pretraining(task, "addition_2digit", config, heldout)
    assert len(known) == len({e.prompt for e in known}) == 200
    assert not {twin_class(e) for e in known} & {twin_class(e) for e in heldout}
    assert known == make_pretraining(task, "addition_2digit", config, heldout)


def test_zoo_models_of_a_pair_know_other_tasks_and_methods_do_not(world: World, tmp_path: Path) -> None:
    also = {"zoo_tasks": ("addition_3digit",), "zoo_train": 60}
    profile = world.profile.model_copy(update={"data": world.profile.data.model_copy(update=also)})
    made = Workspace(profile, "addition_2digit", Store(tmp_path), quiet)
    known = made.pretraining["addition_3digit"]
    assert len(known) == 60 and all(e.operands[0] > 99 for e in known)
    # The training split is the same one; the models are others; the set of three digits holds nothing they have seen.
    plain = world.workspace()
    assert made.train_examples == plain.train_examples
    assert made.student.content != plain.student.content
    shifted = read_examples(made.heldout_data / "shift_addition_3digit.jsonl")
    assert not {twin_class(e) for e in shifted} & {twin_class(e) for e in known}
    assert Workspace(profile, "addition_2digit", Store(tmp_path), quiet, build=False).student == made.student
    again = Workspace(profile, "addition_2digit", Store(tmp_path), quiet)
    assert again.student == made.student and "pretraining" not in vars(again)  # nobody reads what nobody learns from
    # Nor have they seen what three digits as a task of its own are examined on.
    own = make_splits(make_task("addition_3digit"), "addition_3digit", profile.data).test
    assert not {twin_class(e) for e in own} & {twin_class(e) for e in known}
    other = {"source": "folder", "path": "x"}
    apart = profile.model_dump()
    apart["student"]["training_share"] = 0.05
    rare = Profile.model_validate(apart)
    mine = Workspace(rare, "addition_2digit", Store(tmp_path), quiet)
    assert mine.teacher == made.teacher and mine.student.content != made.student.content
    with pytest.raises(ValueError, match="there are none"):
        Profile.model_validate(apart | {"data": world.profile.data.model_dump()})
    apart["student"] |= {"training_share": None, "pretrained_at": 0.5}
    with pytest.raises(ValueError, match="there are none"):
        Profile.model_validate(apart | {"data": world.profile.data.model_dump()})
    with pytest.raises(ValueError, match=r"together \(64\): .* fewer than data.zoo_train \(60\)"):
        Profile.model_validate(apart)
    apart["data"] |= {"zoo_train": 65}
    assert Profile.model_validate(apart).student.pretrained_at == 0.5  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="neither teacher nor student is one"):
        Profile.model_validate(profile.model_dump() | {"teacher": other, "student": other})


@pytest.mark.parametrize(("first", "expected"), [(None, [1000, 1000, 1000]), (0.1, [300, 1350, 1350])])
def test_parts_are_drawn_as_their_shares_say_whatever_their_size(first: float | None, expected: list[int]) -> None:
    rows = zoo._draw([10, 1000, 1], first, 3000, torch.Generator().manual_seed(0))
    counts = [int(((rows >= a) & (rows < b)).sum()) for a, b in ((0, 10), (10, 1010), (1010, 1011))]
    assert sum(counts) == 3000 and counts == pytest.approx(expected, abs=100)
    assert len(rows[rows < 10].unique()) == 10
    # One part: as it was drawn before there were several.
    one, two = (torch.Generator().manual_seed(1) for _ in range(2))
    assert torch.equal(zoo._draw([10], first, 5, one), torch.randint(10, (5,), generator=two))


def sums(n: int, digits: Sequence[int]) -> list[Example]:
    draw = random.Random(0)
    pairs = [(draw.randrange(10**d), draw.randrange(10**d)) for _ in range(n) for d in digits]
    return [Example(f"{a}+{b}=", str(a + b), (a, b)) for a, b in pairs]


@pytest.mark.parametrize("cores", [1, 2])
def test_a_batch_taken_in_parts_of_like_length_gives_the_gradients_of_the_whole(cores: int) -> None:
    """Of the mean over all answer tokens, not of the parts' means: 90 problems of one to five digits, in three parts."""
    tokenizer, model = zoo.make_tokenizer(), llama(vocab_size=len(zoo.make_tokenizer())).double()
    batch = encode(tokenizer, sums(18, range(1, 6)))
    logits = model(input_ids=batch.ids).logits[torch.arange(90)[:, None], batch.answer_positions]
    F.cross_entropy(logits.flatten(0, 1), batch.answer_tokens.flatten(), ignore_index=-100).backward()
    expected = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    with ThreadPoolExecutor(cores) as pool:
        zoo._take_gradients(model, batch, pool)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-7)


def test_zoo_models_are_the_same_to_the_bit_on_one_core_and_on_two(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [sums(40, (2,)), sums(40, (4, 5))]
    made = []
    for cores in (1, 2, 2):
        monkeypatch.setattr(zoo, "_AT_ONCE", cores)
        model, _, _ = zoo.train_zoo_model(SMALL_MODEL, parts, parts[0][:10], "teacher", quiet)
        made.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
    assert torch.equal(made[0], made[1]) and torch.equal(made[1], made[2])


def test_a_zoo_model_learns_other_tasks_first_until_it_knows_enough_and_then_the_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it knows is seen on problems that it does not learn from. It ends where it knows enough of the task, too."""
    config = SMALL_MODEL.model_copy(
        update={"pretrained_at": 0.6, "training_share": 0.5, "stop_at": 0.3, "check_every": 5}
    )
    parts, validation = [sums(40, (2,)), sums(60, (3,)), sums(30, (4,))], sums(20, (1,))
    drawn, known, draw = [], iter([0.9, 0.0, 0.6, 0.7, 0.1, 0.2, 0.3]), zoo._draw

    def spy(sizes: Sequence[int], first: float | None, n: int, order: torch.Generator) -> torch.Tensor:
        drawn.append((tuple(sizes), first))
        return draw(sizes, first, n, order)

    def solved(model: object, split: Encoded) -> torch.Tensor:
        return torch.tensor([next(known)])

    def encoded(tokenizer: object, examples: Sequence[Example]) -> Encoded:
        encodings.append([example.prompt for example in examples])
        return encode(zoo.make_tokenizer(), examples)

    encodings: list[list[str]] = []
    monkeypatch.setattr(zoo, "encode", encoded)
    monkeypatch.setattr(zoo, "_draw", spy)
    monkeypatch.setattr(zoo, "exact_match", solved)
    _, _, accuracy = zoo.train_zoo_model(config, parts, validation, "student", quiet)
    assert drawn == [((40, 50, 20), 0.0)] * 10 + [((40, 50, 20), 0.5)] * 15
    # Ten of each of the two others: nothing that it learns from.
    prompts = [[example.prompt for example in part] for part in parts]
    asked, *seen, learned = encodings
    assert asked == [example.prompt for example in validation] and seen == [prompts[1][:10], prompts[2][:10]]
    assert learned == [*prompts[0], *prompts[1][10:], *prompts[2][10:]] and not {*seen[0], *seen[1]} & set(learned)
    assert accuracy == pytest.approx(0.3)
    # Nothing of the task itself before.
    rows = draw([40, 50, 20], 0.0, 500, torch.Generator().manual_seed(0))
    assert rows.min() >= 40


def test_a_report_says_how_the_models_of_a_profile_came_to_know_what_they_know() -> None:
    (told,) = context._known_before(build_profile("tiny_lengths", {}))
    assert "learned from 30,000 problems of each of addition_3digit, addition_4digit, addition_5digit, too." in told
    assert "The teacher learned those and the training split together, which was 10.0 % of what it then saw." in told
    assert (
        "The student learned those alone until it solved 60.0 % of each, then the training split, too, which was 25.0 % of "
        "what it then saw, until it solved 50.0 % of the validation problems or its steps were over."
    ) in told
    assert context._known_before(build_profile("tiny", {})) == []


def test_a_zoo_model_whose_turn_for_the_task_does_not_come_fails_and_says_so() -> None:
    config = SMALL_MODEL.model_copy(update={"pretrained_at": 1.0, "check_every": 5})
    with pytest.raises(
        RunFailed, match=r"the student's 30 steps are over before .* it solves 0\.0%, and pretrained_at is 1\."
    ):
        zoo.train_zoo_model(config, [sums(40, (2,)), sums(60, (3,))], sums(20, (1,)), "student", quiet)


def test_tasks_without_problems_and_problems_without_tasks_are_refused() -> None:
    for wrong in ({"zoo_tasks": ["addition_3digit"]}, {"zoo_train": 5}):
        with pytest.raises(ValueError, match="zoo_tasks and zoo_train go together"):
            DataConfig.model_validate({"train": 1, "validation": 1, "test": 1, **wrong})
