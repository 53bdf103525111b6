"""A leaderboard as data: what was run, what it answered, and the places that follow. Reads and writes nothing.

A board holds what can be compared: the same held-out problems, the same teacher and student, the same evaluating code. A row is
one method with its settings and its code, over several seeds. Its place is one more than the number of rows that are
significantly better (paired over seeds and problems, how far seeds differ moderated by that of all pairs, Holm-corrected over
them; rows that share fewer than two seeds as two samples), but not before that of a row of higher accuracy, unless it is one of
those: a row of which little is known is beaten by few. Rows may share a place. A row of one seed has none: how far its seeds
differ is not known.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from cdbench.config import TEACHER, Closed
from cdbench.inference import (
    Hits,
    Interval,
    Spread,
    differing_interval,
    holm,
    moderated,
    share_interval,
    spread,
    unpaired_spread,
)
from cdbench.report.collect import mean_of
from cdbench.report.formats import Measured

FOLDER = re.compile(r"[A-Za-z0-9_\-]*")
"""What a study's folder is called, as far as a leaderboard names it."""
PROFILES = ", "
"""Between the names of a board's profiles."""
_ALPHA = 0.05
_LEAST_SEEDS = 2


_Cost = Annotated[float, Field(ge=0, lt=1e12)]


def pack(hits: Sequence[float]) -> str:
    """Right and wrong answers as text: a bit a problem, base64."""
    return base64.b64encode(np.packbits(np.array(hits) > 0).tobytes()).decode()


class Answered(Closed):
    """What a run solved of a set of problems: `pack` of it."""

    problems: Annotated[int, Field(ge=2)]
    answers: str

    @model_validator(mode="after")
    def _has_an_answer_a_problem(self) -> Self:
        if len(base64.b64decode(self.answers, validate=True)) != -(-self.problems // 8):
            raise ValueError(f"the answers are not those to {self.problems} problems")
        return self

    @property
    def hits(self) -> Hits:
        """[problems], 1 where the answer was right."""
        bits = np.unpackbits(np.frombuffer(base64.b64decode(self.answers), np.uint8), count=self.problems)
        return bits.astype(np.float64)


class RunEntry(Answered):
    """A run: what it answered of the held-out problems, and where that stands."""

    run_id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    seed: int
    shift: dict[str, Answered] = Field(default_factory=dict)
    """Of sets of other lengths, which no place depends on."""
    predictions: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of its predictions.jsonl."""
    cka_debiased: Annotated[float, Field(ge=-1e6, le=1e6)] | None
    sparsity: Annotated[float, Field(ge=0, le=1)] | None = None
    """Of the student's neuron masks, where the method makes any: the share that is off."""
    worked: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Of its answers, how many stand at the end of a worked solution."""
    train_seconds: _Cost | None
    peak_memory_mib: _Cost | None
    machine: str = ""
    """What it ran on: the same spec gives the same answers on machines of one kind, not on all."""


class RowEntry(Closed):
    """A row: its runs, by seed, and what made them. `study` is one whose report shows it, if there is one."""

    name: str
    method: str
    command: str
    commit: str
    code: str
    study: Annotated[str, Field(pattern=rf"^{FOLDER.pattern}$")]
    failed: Annotated[int, Field(ge=0)]
    runs: Annotated[list[RunEntry], Field(min_length=1)]

    @model_validator(mode="after")
    def _has_each_seed_once(self) -> Self:
        if len({run.seed for run in self.runs}) < len(self.runs):
            raise ValueError(f"row {self.name}: two of its runs have the same seed")
        return self

    @property
    def hits(self) -> Hits:
        """[seeds, problems]."""
        return np.array([run.hits for run in self.runs])

    @property
    def run_ids(self) -> list[str]:
        """The runs behind the row."""
        return [run.run_id for run in self.runs]

    @property
    def machines(self) -> list[str]:
        """What its runs ran on, each once."""
        return sorted({run.machine or "a machine that is not known" for run in self.runs})

    def mean(self, key: str) -> float | None:
        """Mean over seeds of a number that some runs have."""
        return mean_of(self._values(key))

    def measured(self, key: str) -> Measured | None:
        """The same with Student's interval over seeds; none where they do not differ."""
        values = self._values(key)
        interval = differing_interval(values)
        bounded = interval.within(-1.0, 1.0) if interval else None  # a CKA, or a share
        return Measured(mean, bounded) if (mean := mean_of(values)) is not None else None

    def _values(self, key: str) -> list[float]:
        return [value for run in self.runs if (value := getattr(run, key)) is not None]

    def shifted(self, name: str) -> Measured | None:
        """Accuracy on a set of another length with its interval over seeds and problems; None where not all runs have it."""
        found = [run.shift[name] for run in self.runs if name in run.shift]
        if len(found) < len(self.runs) or len({each.problems for each in found}) > 1:
            return None
        hits = np.array([each.hits for each in found])
        return Measured(float(hits.mean()), share_interval(hits))


class Board(Closed):
    """Rows that can be compared."""

    task: str
    profile: str
    heldout: str
    evaluation: str
    rows: Annotated[list[RowEntry], Field(min_length=1)]

    @model_validator(mode="after")
    def _has_one_set_of_problems_and_each_run_once(self) -> Self:
        if len({run.problems for row in self.rows for run in row.runs}) > 1:
            raise ValueError(f"board {self.task}: its runs answered different numbers of problems")
        ids = [run_id for row in self.rows for run_id in row.run_ids]
        if len(set(ids)) < len(ids):
            raise ValueError(f"board {self.task}: a run stands on it twice")
        return self

    @property
    def of_profiles(self) -> set[str]:
        """The profiles that its runs are of: several where these have models and problems in common."""
        return set(self.profile.split(PROFILES))

    @property
    def problems(self) -> int:
        """How many held-out problems."""
        return self.rows[0].runs[0].problems

    @property
    def shifts(self) -> list[str]:
        """Sets of other lengths that any row was asked."""
        return sorted({name for row in self.rows for run in row.runs for name in run.shift})

    @property
    def masked(self) -> bool:
        """Whether any row makes neuron masks."""
        return any(run.sparsity is not None for row in self.rows for run in row.runs)


@dataclass(frozen=True)
class Row:
    """A row in its place.

    Attributes:
        place: None for the reference, and where nothing can be said.
        tied: whether another row has its place.
        between: the first and the last place that it could have, as far as differences are shown: one more than the rows that are
            better, and as many less than all as are worse.
        better_than, worse_than: rows that it differs from significantly.
        why: why it has no place.
    """

    entry: RowEntry
    accuracy: float
    interval: Interval
    place: int | None = None
    tied: bool = False
    between: tuple[int, int] | None = None
    better_than: tuple[str, ...] = ()
    worse_than: tuple[str, ...] = ()
    why: str = ""


def placed(board: Board) -> list[Row]:
    """The rows in their order: the reference, then by place, then by accuracy."""
    rows = board.rows
    judged = [i for i, row in enumerate(rows) if row.method != TEACHER and len(row.runs) >= _LEAST_SEEDS]
    both = list(combinations(judged, 2))
    gaps = [_compared(rows[i], rows[j]) for i, j in both]
    known = moderated([found for _, found in gaps], sum(len(rows[i].runs) - 1 for i in judged))
    p_values = [2 * found.tail(abs(gap)) for (gap, _), found in zip(gaps, known, strict=True)]
    pairs = [(i, j) if gap > 0 else (j, i) for (i, j), (gap, _) in zip(both, gaps, strict=True)]
    better = {pair for pair, p in zip(pairs, holm(p_values), strict=True) if p < _ALPHA}
    beaten_by = {i: sum(loser == i for _, loser in better) for i in judged}
    # Not before a row of higher accuracy: one whose seeds differ much is beaten by few, and is not better for that. But before
    # rows that it beats: on the seeds that both have it is the higher one.
    answered = [Row(row, float((hits := row.hits).mean()), share_interval(hits)) for row in rows]
    level = [row.accuracy for row in answered]
    places = {i: 1 + max(beaten_by[j] for j in judged if level[j] >= level[i] and (i, j) not in better) for i in judged}
    made = []
    for i, (entry, row) in enumerate(zip(rows, answered, strict=True)):
        if i not in places:
            made.append(replace(row, why="reference" if entry.method == TEACHER else "one seed"))
            continue
        made.append(
            replace(
                row,
                place=places[i],
                tied=list(places.values()).count(places[i]) > 1,
                between=(
                    min(1 + beaten_by[i], places[i]),
                    max(len(judged) - sum(winner == i for winner, _ in better), places[i]),
                ),
                better_than=tuple(rows[loser].name for winner, loser in sorted(better) if winner == i),
                worse_than=tuple(rows[winner].name for winner, loser in sorted(better) if loser == i),
            )
        )
    return sorted(made, key=lambda row: (row.why != "reference", row.place or 10**6, -row.accuracy, row.entry.name))


def _compared(a: RowEntry, b: RowEntry) -> tuple[float, Spread]:
    """Difference of two rows and how far it may be off: paired over common seeds, or as of two samples where they are too few."""
    first, second = ({run.seed: run.hits for run in row.runs} for row in (a, b))
    common = sorted(first.keys() & second.keys())
    if len(common) >= _LEAST_SEEDS:
        difference = np.array([first[seed] - second[seed] for seed in common])
        return float(difference.mean()), spread(difference)
    return float(a.hits.mean() - b.hits.mean()), unpaired_spread(a.hits, b.hits)
