"""The laws of the training loop."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cdbench.api import CkaAlignment, CrossEntropy, GlobalCka, Kl, Signal, Term, TermInputs
from cdbench.config import TrainingConfig
from cdbench.errors import RunFailed
from cdbench.execute import training_problem
from cdbench.objectives.global_cka import make_probe
from cdbench.signals import compute_signals
from cdbench.train import Loop, TrainingProblem, learning_rate
from conftest import World, history_of, quiet


def problem(world: World, folder: Path, seed: int = 0, **training: object) -> TrainingProblem:
    spec = world.spec("kl", seed=seed)
    config = spec.profile.training.model_copy(update=training)
    folder.mkdir(parents=True, exist_ok=True)
    made = training_problem(folder, spec, world.workspace(spec), quiet)
    return dataclasses.replace(made, training=config)


def fit(world: World, folder: Path, terms: Sequence[Term], seed: int = 0, **training: object) -> dict[str, Tensor]:
    made = problem(world, folder, seed, **training)
    weights = made.fit(terms).weights
    made.history.flush()
    assert weights is not None
    return dict(weights)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


ALIGN = ((0, 1), (1, 2))


def test_two_runs_agree_bit_for_bit_and_another_seed_differs(world: World, tmp_path: Path) -> None:
    one = fit(world, tmp_path / "1", [Kl(), CkaAlignment(ALIGN)])
    two = fit(world, tmp_path / "2", [Kl(), CkaAlignment(ALIGN)])
    assert same(one, two)
    assert history_of(tmp_path / "1") == history_of(tmp_path / "2")
    assert not same(one, fit(world, tmp_path / "3", [Kl(), CkaAlignment(ALIGN)], seed=1))


def test_looking_changes_nothing(world: World, tmp_path: Path) -> None:
    often = fit(world, tmp_path / "1", [Kl(), CkaAlignment(ALIGN)], probe_every=1)
    rarely = fit(world, tmp_path / "2", [Kl(), CkaAlignment(ALIGN)], probe_every=1000)
    assert same(often, rarely)


def test_a_term_of_weight_zero_is_measured_and_never_pulls(world: World, tmp_path: Path) -> None:
    alone = fit(world, tmp_path / "1", [Kl()])
    beside = fit(world, tmp_path / "2", [Kl(), CkaAlignment(ALIGN, weight=0.0)])
    assert same(alone, beside)
    rows = history_of(tmp_path / "2")
    assert all("loss/cka" in row for row in rows if "loss/kl" in row)
    assert rows[0]["grad/cka"] > 0


@pytest.mark.parametrize("probe", [False, True])
def test_resumed_equals_straight(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, probe: bool) -> None:
    def terms_of(folder: Path) -> list[Term]:
        folder.mkdir(exist_ok=True)
        if not probe:
            return [Kl(), CkaAlignment(ALIGN)]
        own, target = ("mlp.0.out",), ("mlp.1.out", "mlp.2.out")
        return [Kl(), GlobalCka(own, target, 0.1, probe=make_probe(problem(world, folder), own))]

    terms = terms_of(tmp_path / "1")
    straight = fit(world, tmp_path / "1", terms, epochs=3, selection="validation")
    terms = terms_of(tmp_path / "2")
    broken = dataclasses.replace(problem(world, tmp_path / "2", epochs=3, selection="validation"), checkpoint_seconds=0)
    steps = 0
    original = Loop._step

    def interrupted(self: Loop, rows: Tensor, found: dict[str, Tensor]) -> None:
        nonlocal steps
        steps += 1
        if steps == 13:  # in the middle of the second epoch of eight steps
            raise KeyboardInterrupt
        original(self, rows, found)

    monkeypatch.setattr(Loop, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        broken.fit(terms)
    monkeypatch.setattr(Loop, "_step", original)
    assert (tmp_path / "2" / "checkpoint.pt").exists()
    resumed = fit(world, tmp_path / "2", terms_of(tmp_path / "2"), epochs=3, selection="validation")
    assert same(straight, resumed)
    assert history_of(tmp_path / "1") == history_of(tmp_path / "2")


def test_a_method_that_fits_twice_resumes_as_it_would_have_run(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second fit is killed: what the first one left, and what the second one left for it, must not be taken for its own."""

    def both(folder: Path) -> dict[str, Tensor]:
        made = dataclasses.replace(problem(world, folder, epochs=2, selection="validation"), checkpoint_seconds=0)
        first = made.fit([CrossEntropy()]).weights
        assert first and same(first, made.student.state_dict())  # the second one goes on with what the first one gave
        second = made.fit([Kl()]).weights
        assert second and not same(first, second)
        assert made.steps_done == 32
        made.history.flush()
        return second

    straight = both(tmp_path / "1")
    original, steps = Loop._step, 0

    def interrupted(self: Loop, rows: Tensor, found: dict[str, Tensor]) -> None:
        nonlocal steps
        steps += 1
        if steps == 29:
            raise KeyboardInterrupt
        original(self, rows, found)

    monkeypatch.setattr(Loop, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        both(tmp_path / "2")
    monkeypatch.setattr(Loop, "_step", original)
    assert same(straight, both(tmp_path / "2"))
    rows = history_of(tmp_path / "2")
    assert rows == history_of(tmp_path / "1")
    assert [row["step"] for row in rows if "loss/total" in row] == [*range(1, 33)]


def test_a_checkpoint_of_another_run_is_refused(world: World, tmp_path: Path) -> None:
    made = problem(world, tmp_path)
    torch.save({"run_id": "other"}, made.checkpoint)
    with pytest.raises(RunFailed, match="belongs to run other"):
        made.fit([Kl()])


def test_cached_signals_equal_a_live_teacher(world: World, tmp_path: Path) -> None:
    made = problem(world, tmp_path)
    workspace = world.workspace()
    rows = torch.tensor([5, 17, 100, 3])
    batch = made.encoded_train.select(rows)
    live = compute_signals(workspace.teacher.model(), batch, [("logits", "last_prompt"), ("mlp.1.out", "last_prompt")])
    for (site, position), value in live.items():
        cached = made.signal(Signal(site, position))[rows]
        torch.testing.assert_close(cached, value, atol=1e-5, rtol=1e-5)


def test_the_signals_of_an_untrained_teacher_are_not_the_teachers(world: World, tmp_path: Path) -> None:
    made = problem(world, tmp_path)
    trained, untrained = (made.signal(Signal("mlp.1.out", source=s)) for s in ("teacher", "untrained_teacher"))
    assert trained.shape == untrained.shape
    assert not torch.allclose(trained, untrained)


class Detached(CkaAlignment):
    """What paper A's released code does (errata A9): the activations are cut off before the loss."""

    def loss(self, inputs: TermInputs) -> Tensor:
        return super().loss(inputs).detach()


def test_a_weighted_term_without_gradient_is_an_error_that_names_it(world: World, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="term 'cka' has weight 0.01 but no gradient"):
        fit(world, tmp_path, [Kl(), Detached(ALIGN)])


class Explodes(CrossEntropy):
    def loss(self, inputs: TermInputs) -> Tensor:
        value = super().loss(inputs)
        return value / 0 if 3 in inputs.rows else value


class Fades(CrossEntropy):
    """Has a gradient on its first steps only; later the value stays and pulls no more."""

    calls = 0

    def __init__(self, left: float) -> None:
        super().__init__()
        self.left = left

    def loss(self, inputs: TermInputs) -> Tensor:
        Fades.calls += 1
        value = super().loss(inputs)
        return value if Fades.calls <= 5 else value.detach() + self.left * value


@pytest.mark.parametrize("left", [0.0, 1e-20])
def test_a_term_that_pulls_no_more_is_noted_beside_the_result(left: float, world: World, tmp_path: Path) -> None:
    Fades.calls = 0
    made = problem(world, tmp_path, probe_every=4)
    made.fit([Fades(left), Kl()])
    told = (
        "term 'cross_entropy' (weight 1) gave the student next to no gradient at 2 of 4 probed steps, first at step 9"
    )
    assert made.notes == [told]
    honest = problem(world, tmp_path / "honest", probe_every=4)
    honest.fit([CrossEntropy(), Kl()])
    assert honest.notes == []


class Scheduled(Term):
    """Weighs as its schedule says, a weight a step."""

    name = "scheduled"
    student_sites = ("mlp.0.out",)
    signals = ()

    def __init__(self, schedule: Callable[[int], float]) -> None:
        self._calls, self._schedule = 0, schedule

    @property
    def weight(self) -> float:  # type: ignore[override]
        return self._schedule(self._calls)

    def loss(self, inputs: TermInputs) -> Tensor:
        self._calls += 1
        return CrossEntropy().loss(inputs)


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        (
            lambda step: 1.0 if step < 5 else 1e-9,
            "term 'scheduled' weighed 1 at most and less than a thousandth of that on 11 of 16 steps, first on step 6",
        ),
        (
            lambda step: 0.0 if step < 5 else 1.0 if step < 10 else 0.0,
            "term 'scheduled' weighed 1 at most and less than a thousandth of that on 6 of 16 steps, first on step 11",
        ),
        (lambda step: 0.0, ""),  # a control; what the method says of itself is held against it elsewhere
        (lambda step: step / 16, ""),
    ],
    ids=["taken away", "given and taken away", "never given", "given by and by"],
)
def test_a_term_whose_weight_a_schedule_takes_away_is_noted_beside_the_result(
    schedule: Callable[[int], float], told: str, world: World, tmp_path: Path
) -> None:
    """The gradient that is probed is unweighted: it alone would say that all is well."""
    made = problem(world, tmp_path, probe_every=4)
    made.fit([Scheduled(schedule), Kl()])
    assert made.notes == ([told] if told else [])
    assert made.heaviest == {"scheduled": max(map(schedule, range(16)))}


def test_a_term_weighs_what_it_weighs_most_in_any_fit(world: World, tmp_path: Path) -> None:
    made = problem(world, tmp_path)
    for weight in (0.0, 0.5, 0.0):
        made.fit([Scheduled(lambda step, weight=weight: weight), Kl()])
    assert made.heaviest == {"scheduled": 0.5}


def test_a_loss_that_is_not_finite_names_step_term_and_batch(world: World, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"cross_entropy became inf at step \d+, batch of 32 problems beginning .*="):
        fit(world, tmp_path, [Explodes()])


def test_two_terms_of_one_name_are_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="two terms have one name"):
        fit(world, tmp_path, [Kl(), Kl()])


def test_validation_selection_keeps_the_best_epoch(world: World, tmp_path: Path) -> None:
    # A learning rate that ruins the model: the first epoch, under warm-up, is the best.
    ruin = {"lr": 0.3, "epochs": 3, "warmup_steps": 24}
    last = fit(world, tmp_path / "1", [CrossEntropy()], **ruin)
    best = fit(world, tmp_path / "2", [CrossEntropy()], selection="validation", **ruin)
    accuracies = [r["validation/accuracy"] for r in history_of(tmp_path / "2") if "validation/accuracy" in r]
    assert accuracies[0] >= max(accuracies[1:])
    assert not same(last, best)


def test_alignment_at_all_positions_runs_and_differs(world: World, tmp_path: Path) -> None:
    one = fit(world, tmp_path / "1", [Kl(), CkaAlignment(ALIGN, weight=1.0)])
    two = fit(world, tmp_path / "2", [Kl(), CkaAlignment(ALIGN, weight=1.0, position="all")])
    assert not same(one, two)


def test_training_learns(world: World, tmp_path: Path) -> None:
    fit(world, tmp_path, [CrossEntropy()], epochs=6)
    losses = [row["loss/cross_entropy"] for row in history_of(tmp_path) if "loss/cross_entropy" in row]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])


@pytest.mark.parametrize(
    ("schedule", "step", "want"),
    [
        ("constant", 0, 0.25), ("constant", 3, 1.0), ("constant", 99, 1.0),
        ("linear", 4, 1.0), ("linear", 52, 0.5), ("cosine", 52, 0.5), ("cosine", 100, 0.0),
    ],
)  # fmt: skip
def test_the_learning_rate_by_hand(schedule: str, step: int, want: float) -> None:
    config = TrainingConfig(lr=1.0, warmup_steps=4, schedule=schedule)  # type: ignore[arg-type]
    assert learning_rate(config, step, 100) == pytest.approx(want)


def test_history_holds_every_step_and_epoch(world: World, tmp_path: Path) -> None:
    fit(world, tmp_path, [Kl(), CkaAlignment(ALIGN)])
    rows = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss/total" in row] == list(range(1, 17))
    first = rows[0]
    assert first["loss/total"] == pytest.approx(first["loss/kl"] + 0.01 * first["loss/cka"], rel=1e-5)
    assert {"grad/kl", "grad/cka", "grad/total", "lr", "time"} <= first.keys()
    assert [row["epoch"] for row in rows if "epoch" in row] == [1, 2]
