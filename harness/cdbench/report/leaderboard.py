"""The leaderboard: rows are records, places are never given by a difference inside the noise.

A board holds what can be compared: the same held-out problems, the same teacher and student, the same evaluating code. A row is
one method with its hyperparameters, its training budget and its code, over several seeds. Its place is one more than the number
of rows that are significantly better (paired over seeds and problems, Holm-corrected over all pairs of the board); rows that
nothing sets apart share a place. A row of one seed has none: how far its seeds differ is not known.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from cdbench.config import TEACHER, Profile, Scalar, available, build_profile, show
from cdbench.errors import UserError
from cdbench.inference import holm, paired_p
from cdbench.plan import Places, flat
from cdbench.record import RECORD, Record, read
from cdbench.report.collect import Group, make_group, paired

_ALPHA = 0.05
_LEAST_SEEDS = 2


@dataclass(frozen=True)
class Row:
    """A row of a board.

    Attributes:
        group: its runs and their answers.
        command: what runs it.
        place: None for the reference, and where nothing can be said.
        tied: whether another row has its place.
        better_than, worse_than: rows that it differs from significantly.
        why: why it has no place.
    """

    group: Group
    command: str
    commit: str
    code: str
    place: int | None = None
    tied: bool = False
    better_than: tuple[str, ...] = ()
    worse_than: tuple[str, ...] = ()
    why: str = ""

    @property
    def name(self) -> str:
        """The row's name, unique on its board."""
        return self.group.name


@dataclass(frozen=True)
class Board:
    """Rows that can be compared."""

    task: str
    profile: str
    heldout: str
    evaluation: str
    problems: int
    rows: tuple[Row, ...]


def boards(where: Places, task: str | None = None) -> list[Board]:
    """All boards of a runs folder; of one task if it is named. Records that failed count only as failed runs of a row.

    Raises:
        UserError: there is no finished run (of that task), or predictions were altered.
    """
    found = [read(path.parent) for path in sorted(where.records.glob(f"*/{RECORD}"))]
    mine = [record for record in found if task in (None, record.spec.task)]
    good = [record for record in mine if record.metrics is not None]
    if not good:
        have = ", ".join(sorted({record.spec.task for record in found if record.metrics})) or "none"
        raise UserError(
            f"no finished run{f' of {task}' if task else ''} under {where.records}; there are runs of: {have}. "
            "Run some first: cdbench leaderboard add METHOD"
        )
    split: dict[tuple[str, ...], list[Record]] = {}
    for record in good:
        inputs = (str(record.inputs.get(key, "")) for key in ("heldout", "teacher", "student"))
        split.setdefault((record.spec.task, record.code.evaluation, *inputs), []).append(record)
    failed = [record for record in mine if record.metrics is None]
    return [_board(records, failed, where) for _, records in sorted(split.items())]


def _board(records: Sequence[Record], failed: Sequence[Record], where: Places) -> Board:
    rows: dict[str, list[Record]] = {}
    for record in records:
        rows.setdefault(_row_key(record), []).append(record)
    made = [_row(members, [r for r in failed if _row_key(r) == key], where) for key, members in rows.items()]
    first = records[0]
    return Board(
        task=first.spec.task,
        profile=first.spec.profile.name,
        heldout=str(first.inputs.get("heldout", "")),
        evaluation=first.code.evaluation,
        problems=made[0].group.hits.shape[1],
        rows=_placed(_named_apart(made)),
    )


def _row_key(record: Record) -> str:
    code = "" if record.spec.method == TEACHER else record.code.digest
    training = record.spec.profile.training.model_dump(mode="json") if record.spec.method != TEACHER else {}
    params = record.params or record.spec.params
    return json.dumps([record.spec.method, params, training, code], sort_keys=True)


def _row(members: Sequence[Record], failed: Sequence[Record], where: Places) -> Row:
    first = members[0]
    members = sorted(members, key=lambda record: record.spec.seed)
    group = make_group(first.spec.method, {}, members, failed, where)
    changed = {key: value for key, value in _changes(first).items() if key.startswith(("method.", "training."))}
    if changed:
        group = replace(group, name=f"{group.name} ({', '.join(f'{k}={show(v)}' for k, v in changed.items())})")
    seeds = ",".join(str(record.spec.seed) for record in members)
    method = "base" if first.spec.method == TEACHER else first.spec.method  # the teacher runs beside every row
    words = ["cdbench", "run", method, "--task", first.spec.task, "--profile", first.spec.profile.name]
    words += ["--seeds", seeds] + [word for k, v in _changes(first).items() for word in ("--set", f"{k}={show(v)}")]
    return Row(group, " ".join(words), first.code.commit, first.code.digest)


def _changes(record: Record) -> dict[str, Scalar]:
    """What was set differently from the profile of that name, and from the method's defaults."""
    changes: dict[str, Scalar] = {f"method.{key}": value for key, value in record.spec.params.items()}
    if record.spec.profile.name in available("profiles"):
        usual = _settings(build_profile(record.spec.profile.name, {}))
        changes |= {key: value for key, value in _settings(record.spec.profile).items() if usual.get(key) != value}
    return changes


def _settings(profile: Profile) -> dict[str, Scalar]:
    return flat(profile.model_dump(mode="json", exclude={"name", "description", "limits"}))


def _named_apart(rows: Sequence[Row]) -> list[Row]:
    """Two versions of one method's code are two rows; their names say so."""
    names = [row.name for row in rows]
    return [
        row
        if names.count(row.name) == 1
        else replace(row, group=replace(row.group, name=f"{row.name} [code {row.code[:6]}]"))
        for row in rows
    ]


def _placed(rows: Sequence[Row]) -> tuple[Row, ...]:
    judged = [i for i, row in enumerate(rows) if row.group.method != TEACHER and len(row.group.hits) >= _LEAST_SEEDS]
    pairs, p_values = [], []
    for i, j in combinations(judged, 2):
        hits = paired(rows[i].group, rows[j].group)
        if hits is not None and len(hits[0]) >= _LEAST_SEEDS:
            difference = hits[0] - hits[1]
            pairs.append((i, j) if difference.mean() > 0 else (j, i))
            p_values.append(paired_p(difference))
    better = {pair for pair, p in zip(pairs, holm(p_values), strict=True) if p < _ALPHA}
    places = {i: 1 + sum(winner != i and loser == i for winner, loser in better) for i in judged}
    made = []
    for i, row in enumerate(rows):
        if i in places:
            made.append(
                replace(
                    row,
                    place=places[i],
                    tied=list(places.values()).count(places[i]) > 1,
                    better_than=tuple(rows[loser].name for winner, loser in sorted(better) if winner == i),
                    worse_than=tuple(rows[winner].name for winner, loser in sorted(better) if loser == i),
                )
            )
        else:
            why = "reference" if row.group.method == TEACHER else "one seed"
            made.append(replace(row, why=why))
    return tuple(sorted(made, key=lambda row: (row.why != "reference", row.place or 10**6, -row.group.mean)))
