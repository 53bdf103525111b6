"""From records to the numbers of the report. Pure: reads files, draws nothing."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cdbench import plugins
from cdbench.config import TEACHER, Scalar, show
from cdbench.errors import UserError
from cdbench.files import parse_json_lines, sha256
from cdbench.inference import Hits, Interval, share_interval
from cdbench.plan import Places, SavedStudy
from cdbench.provenance import evaluation_digest
from cdbench.record import RECORD, Record, check_history, number_at, read
from cdbench.report.anatomy import Anatomy, Answers, anatomy
from cdbench.scoring import read_predictions
from cdbench.seeds import digest

UNTRAINED = (TEACHER, "base")
"""Rows that no training and no seed changes."""


@dataclass(frozen=True)
class Group:
    """The runs of one row: same method, same hyperparameters, several seeds.

    `hits` is [seeds, problems] of the test split, 1 where the answer was right; runs without result are in `failed`.
    """

    name: str
    method: str
    task: str
    point: dict[str, Scalar]
    records: tuple[Record, ...]
    failed: tuple[Record, ...]
    hits: Hits
    folders: tuple[Path, ...]
    answers: tuple[Answers, ...] = ()
    """Of each run with a result: what it said, split by split."""
    judged_by: str = ""
    """By which evaluation, on what, beside whom: rows in which this differs are not compared."""

    @property
    def mean(self) -> float:
        """Accuracy, the mean over seeds."""
        return float(self.hits.mean())

    @property
    def interval(self) -> Interval:
        """95 %, over seeds and problems; of one run, or of several whose answers are all the same, over problems alone."""
        return share_interval(self.hits)

    @property
    def per_seed(self) -> list[float]:
        """Accuracy of each run."""
        return [float(row.mean()) for row in self.hits]

    @property
    def run_ids(self) -> list[str]:
        """The runs behind this row."""
        return [r.run_id for r in (*self.records, *self.failed)]

    @cached_property
    def anatomy(self) -> Anatomy | None:
        """How its answers are wrong, worked out once for table and picture; None without a run."""
        return anatomy(self.answers)

    @cached_property
    def histories(self) -> list[list[dict[str, float]]]:
        """What each run logged, one dictionary a line; read once, for every curve and claim.

        Raises:
            UserError: a file is missing, altered, or no history.
        """
        return [_history(record, folder) for record, folder in zip(self.records, self.folders, strict=True)]

    @cached_property
    def alignment_share(self) -> float | None:
        """λ |∇ alignment| / |∇ all terms|, the mean over probed steps and seeds: how much the term can do; None without one."""
        weights = [record.params.get("alignment_weight") for record in self.records]
        weighted = [(i, weight) for i, weight in enumerate(weights) if isinstance(weight, int | float)]
        shares = [
            gradient_share(self.histories[i], weight, term, "total")
            for i, weight in weighted
            for term in _ALIGNMENT_TERMS
        ]
        return mean_of([share for share in shares if share is not None])

    def values(self, name: str) -> list[float]:
        """A number of the CKA or mask summary of each run that has it."""
        return [value for r in self.records if (value := number_at(r.metrics, name)) is not None]

    def by_seed(self, name: str) -> dict[int, float]:
        """The same by the runs' seeds."""
        return {r.spec.seed: value for r in self.records if (value := number_at(r.metrics, name)) is not None}

    def metric(self, name: str) -> float | None:
        """Mean over seeds of a number of the CKA or mask summary; None where the row has none."""
        return mean_of(self.values(name))

    def metric_cost(self, name: str) -> float | None:
        """Mean over seeds of a cost; None where no run has it."""
        return mean_of([r.cost[name] for r in self.records if name in r.cost])


_ALIGNMENT_TERMS = ("cka", "global_cka")


def gradient_share(logged: Sequence[dict[str, float]], weight: float, term: str, of: str) -> float | None:
    """weight·‖∇term‖ / ‖∇of‖, the mean over a run's probed steps; None where it has none."""
    rows = [row for row in logged if row.get(f"grad/{of}") and f"grad/{term}" in row]
    return mean_of([weight * row[f"grad/{term}"] / row[f"grad/{of}"] for row in rows])


def mean_of(values: Sequence[float]) -> float | None:
    """The mean; None of nothing."""
    return float(np.mean(values)) if values else None


@dataclass(frozen=True)
class StudyData:
    """All that a report shows."""

    saved: SavedStudy
    groups: tuple[Group, ...]
    missing: tuple[str, ...]
    records: tuple[Record, ...] = field(default_factory=tuple)

    def group(self, method: str) -> Group | None:
        """The first row with a result of this method."""
        found = (g for g in self.groups if g.method == method and g.records)
        return next(found, None)

    def beside(self, group: Group, method: str) -> Group | None:
        """The row with a result of this method that a row is to be compared with: same task, point of the sweep, evaluation."""

        def fits(other: Group) -> bool:
            at = all(group.point.get(key, value) == value for key, value in other.point.items())
            return at and other.judged_by == group.judged_by

        found = (g for g in self.groups if g.method == method and g.records and g.task == group.task and fits(g))
        return next(found, None)

    @property
    def of_paper_b(self) -> bool:
        """Whether it has rows of paper B and none that is paper A's own."""
        methods = {group.method for group in self.groups}
        return bool(methods & {"atp_cd", "global_cd", "three_term"}) and not methods & {"cka_cd", "supervised_cd"}

    @property
    def failures(self) -> list[Record]:
        """Runs without a result."""
        return [r for r in self.records if r.status != "ok"]


_FIRST = (
    "cka_cd",
    "atp_cd",
    "finetune",
    "kl",
    "supervised_cd",
    "global_cd",
    "head_cd",
    "cka_shuffled_teacher",
    "atp_weight_zero",
)
"""Rows that pictures have room for before others: the papers' own, and what they are to be held against."""


def trained_first(groups: Sequence[Group], most: int) -> list[Group]:
    """So many trained rows with a result for a picture that has no room for all, in the study's order; tables have them all."""
    learned = [group for group in groups if group.records and group.method not in UNTRAINED]
    place = {method: i for i, method in enumerate(_FIRST)}
    chosen = sorted(learned, key=lambda group: place.get(group.method, len(_FIRST)))[:most]
    return [group for group in learned if any(group is each for each in chosen)]


def reports_folder() -> Path:
    """Templates and claims: in the checkout, or beside the plug-ins in a wheel."""
    return plugins.roots()[-1] / "reports"


def _history(record: Record, folder: Path) -> list[dict[str, float]]:
    """One dictionary a line; the file must be the one that the record was written with."""
    path = folder / "history.jsonl"
    expected = record.artefacts.get(path.name)
    if (sha256(path) if path.exists() else None) != expected:
        raise UserError(f"{path} is missing or was altered since its record was written; run it again")
    check_history(folder)
    return parse_json_lines(path.read_text()) if expected else []


def collect(saved: SavedStudy, where: Places) -> StudyData:
    """Reads a study's records and predictions.

    Raises:
        UserError: no run of the study has a record yet.
    """
    present = [run_id for run_id in saved.run_ids if (where.run(run_id) / RECORD).exists()]
    if not present:
        raise UserError(f"study '{saved.name}' has no record yet; run it first: {saved.command}")
    records = tuple(read(where.run(run_id)) for run_id in present)
    groups = _group(records, saved, where)
    missing = tuple(run_id for run_id in saved.run_ids if run_id not in present)
    return StudyData(saved, groups, missing, records)


def _group(records: Sequence[Record], saved: SavedStudy, where: Places) -> tuple[Group, ...]:
    order: dict[str, list[Record]] = {}
    for record in records:
        point = sweep_point(record, saved)
        key = json.dumps([record.spec.method, record.spec.task, point], sort_keys=True)
        order.setdefault(key, []).append(record)
    groups = []
    several = int(len({r.spec.task for r in records}) > 1)
    for members in order.values():
        first = members[0]
        point = sweep_point(first, saved)
        label = ", ".join(f"{short(key)}={show(value)}" for key, value in point.items())
        name = " ".join([first.spec.method, *([f"({label})"] if label else []), *several * [first.spec.task]])
        failed = [r for r in members if r.metrics is None]
        alike: dict[str, list[Record]] = {}
        for record in members:
            if record.metrics is not None:
                alike.setdefault(judged_by(record), []).append(record)
        apart = {key: f" [evaluation {i}]" if len(alike) > 1 else "" for i, key in enumerate(alike, 1)}
        for i, (key, good) in enumerate(alike.items()):
            # A run without a result was judged by nobody: it stands with the first.
            groups.append(make_group(name + apart[key], point, good, [] if i else failed, where))
        if not alike:
            groups.append(make_group(name, point, [], failed, where))
    return tuple(groups)


def judged_by(record: Record) -> str:
    """What two runs must have in common to be compared: evaluating code, held-out problems, teacher, student before training."""
    return digest([record.code.evaluation, *(record.inputs.get(key) for key in ("heldout", "teacher", "student"))])


def read_answers(record: Record, folder: Path) -> Answers:
    """What a run said, problem by problem; the file must be the one that the record was written with.

    Raises:
        UserError: predictions are missing or were altered.
    """
    path = folder / "predictions.jsonl"
    if not path.is_file() or sha256(path) != record.artefacts.get(path.name):
        raise UserError(f"{path} is missing or was altered since its record was written; run it again")
    answers = read_predictions(folder)
    if (
        record.metrics is not None and record.code.evaluation == evaluation_digest()
    ):  # an older one may have scored otherwise
        said, test = record.metrics.accuracy, answers.get("test", ())
        if (said.k, said.n) != (solved := sum(p.correct for p in test), len(test)):
            raise UserError(
                f"{folder / RECORD} says that {said.k} of {said.n} problems were solved, the predictions beside it {solved} of "
                f"{len(test)}: one of the two was altered; run it again"
            )
    return answers


def hits_of(answers: Sequence[Answers], split: str) -> Hits | None:
    """What runs solved of a held-out set, [seeds, problems]; None where one of them was not evaluated on it."""
    if not answers or any(not each.get(split) for each in answers):
        return None
    return np.array([[float(p.correct) for p in each[split]] for each in answers], dtype=np.float64)


def make_group(
    name: str, point: dict[str, Scalar], good: Sequence[Record], failed: Sequence[Record], where: Places
) -> Group:
    """A row of runs that share all but the seed; reads what they said.

    Raises:
        UserError: predictions are missing or were altered.
    """
    first = [*good, *failed][0].spec
    folders = tuple(where.run(record.run_id) for record in good)
    answers = tuple(read_answers(record, folder) for record, folder in zip(good, folders, strict=True))
    hits = hits_of(answers, "test")
    return Group(
        name=name,
        method=first.method,
        task=first.task,
        point=point,
        records=tuple(good),
        failed=tuple(failed),
        hits=np.zeros((0, 0)) if hits is None else hits,
        folders=folders,
        answers=answers,
        judged_by=judged_by(good[0]) if good else "",
    )


def machine_of(record: Record) -> str:
    """What last digits depend on: device, threads, libraries."""
    found = record.environment
    versions = found.get("versions")
    torch = versions.get("torch build", "") if isinstance(versions, dict) else ""
    device = found.get("gpu") or found.get("processor") or "unknown processor"
    return f"{device}, {found.get('threads', '?')} threads, torch {torch}" if found else "unknown"


def sweep_point(record: Record, saved: SavedStudy) -> dict[str, Scalar]:
    """The swept values of a run."""
    profile = record.spec.profile.model_dump(mode="json")
    point: dict[str, Scalar] = {}
    for key in saved.study.sweep:
        if record.spec.method == TEACHER and key.startswith(("method.", "training.")):
            continue  # the reference row is not trained
        if key.startswith("method."):
            if (name := key.removeprefix("method.")) in record.params:  # a method without it is run once, unswept
                point[key] = record.params[name]
        else:
            node: Any = profile
            for part in key.split("."):
                node = node[part]
            point[key] = node
    return point


def short(key: str) -> str:
    """A swept key for people."""
    return {"method.alignment_weight": "λ", "training.lr": "LR"}.get(key, key)


def paired(a: Group, b: Group) -> tuple[Hits, Hits] | None:
    """The two rows' hits on the same problems and seeds; a row that has one run (the teacher) stands for each seed.

    None where they cannot be compared.
    """
    if a.judged_by != b.judged_by or a.hits.size == 0 or b.hits.size == 0 or a.hits.shape[1] != b.hits.shape[1]:
        return None
    seeds_a, seeds_b = ([r.spec.seed for r in g.records] for g in (a, b))
    if b.method == TEACHER:
        return a.hits, np.repeat(b.hits[:1], len(a.hits), axis=0)
    if a.method == TEACHER:
        return np.repeat(a.hits[:1], len(b.hits), axis=0), b.hits
    common = [seed for seed in seeds_a if seed in seeds_b]
    if not common:
        return None
    return a.hits[[seeds_a.index(s) for s in common]], b.hits[[seeds_b.index(s) for s in common]]
