"""The leaderboard: rows are records. `LEADERBOARD.md` holds the answers that its places follow from, so it can be checked.

Whoever has the file can compute every number in it again; whoever has the records can hold it against them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from cdbench.config import TEACHER, Profile, Scalar, available, build_profile, explain, show
from cdbench.errors import UserError
from cdbench.plan import STUDY_FILE, Places, flat
from cdbench.record import RECORD, Record, read
from cdbench.report.board import Board, RowEntry, RunEntry, pack, placed
from cdbench.report.build import template
from cdbench.report.collect import Answers, read_answers

_BOARDS = TypeAdapter(list[Board])
_FENCE = "```json\n", "\n```\n"


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
    studies = _studies(where)
    return [_board(records, failed, studies, where) for _, records in sorted(split.items())]


def _studies(where: Places) -> dict[str, set[str]]:
    """Run id -> studies with a report that shows it."""
    found: dict[str, set[str]] = {}
    for path in where.runs.glob(f"*/{STUDY_FILE}"):
        if (path.parent / "report" / "index.html").is_file():
            for run_id in json.loads(path.read_text())["run_ids"]:
                found.setdefault(run_id, set()).add(path.parent.name)
    return found


def _board(records: Sequence[Record], failed: Sequence[Record], studies: dict[str, set[str]], where: Places) -> Board:
    rows: dict[str, list[Record]] = {}
    for record in records:
        rows.setdefault(_row_key(record), []).append(record)
    made = []
    for key, members in sorted(rows.items()):
        lost = sum(_row_key(r) == key for r in failed)
        shown = set.intersection(*(studies.get(r.run_id, set()) for r in members))
        made.append(_row(members, lost, min(shown, default=""), where))
    first = records[0]
    return Board(
        task=first.spec.task,
        profile=first.spec.profile.name,
        heldout=str(first.inputs.get("heldout", "")),
        evaluation=first.code.evaluation,
        rows=_named_apart(made),
    )


def _row_key(record: Record) -> str:
    code = "" if record.spec.method == TEACHER else record.code.digest
    training = record.spec.profile.training.model_dump(mode="json") if record.spec.method != TEACHER else {}
    params = record.params or record.spec.params
    return json.dumps([record.spec.method, params, training, code], sort_keys=True)


def _row(members: Sequence[Record], failed: int, study: str, where: Places) -> RowEntry:
    first = members[0]
    members = sorted(members, key=lambda record: record.spec.seed)
    name = first.spec.method
    changed = {key: value for key, value in _changes(first).items() if key.startswith(("method.", "training."))}
    if changed:
        name += f" ({', '.join(f'{k}={show(v)}' for k, v in changed.items())})"
    seeds = ",".join(str(record.spec.seed) for record in members)
    method = "base" if first.spec.method == TEACHER else first.spec.method  # the teacher runs beside every row
    words = ["cdbench", "run", method, "--task", first.spec.task, "--profile", first.spec.profile.name]
    words += ["--seeds", seeds] + [word for k, v in _changes(first).items() for word in ("--set", f"{k}={show(v)}")]
    return RowEntry(
        name=name,
        method=first.spec.method,
        command=" ".join(words),
        commit=first.code.commit,
        code=first.code.digest,
        study=study,
        failed=failed,
        runs=[_run(record, read_answers(record, where.run(record.run_id))) for record in members],
    )


def _run(record: Record, answers: Answers) -> RunEntry:
    assert record.metrics is not None
    cka = record.metrics.cka
    return RunEntry(
        run_id=record.run_id,
        seed=record.spec.seed,
        problems=len(answers["test"]),
        answers=pack([p.correct for p in answers["test"]]),
        predictions=record.artefacts["predictions.jsonl"],
        cka_debiased=cka.debiased_mean if cka else None,
        train_seconds=record.cost.get("train_seconds"),
        peak_memory_mib=record.cost.get("train_peak_memory_mib"),
    )


def _changes(record: Record) -> dict[str, Scalar]:
    """What was set differently from the profile of that name, and from the method's defaults."""
    changes: dict[str, Scalar] = {f"method.{key}": value for key, value in record.spec.params.items()}
    if record.spec.profile.name in available("profiles"):
        usual = _settings(build_profile(record.spec.profile.name, {}))
        changes |= {key: value for key, value in _settings(record.spec.profile).items() if usual.get(key) != value}
    return changes


def _settings(profile: Profile) -> dict[str, Scalar]:
    return flat(profile.model_dump(mode="json", exclude={"name", "description", "limits"}))


def _named_apart(rows: Sequence[RowEntry]) -> list[RowEntry]:
    """Two versions of one method's code are two rows; their names say so."""
    names = [row.name for row in rows]
    return [
        row if names.count(row.name) == 1 else row.model_copy(update={"name": f"{row.name} [code {row.code[:6]}]"})
        for row in rows
    ]


def as_markdown(boards: Sequence[Board]) -> str:
    """LEADERBOARD.md: the boards for people, then the same as data."""
    data = json.dumps([board.model_dump(mode="json") for board in boards], indent=1)
    shown = [(board, placed(board)) for board in boards]
    return template("leaderboard.md.j2").render(boards=shown) + _FENCE[0] + data + _FENCE[1]


@dataclass(frozen=True)
class Checked:
    """What was held against what. `wrong` is empty where the file is right."""

    runs: int
    present: int
    wrong: list[str]


def check(file: Path, where: Places) -> Checked:
    """Computes a leaderboard file again from its own data, and its data from those of the records it names that are here.

    Raises:
        UserError: the file is missing, or holds no data that can be understood.
    """
    text = _text(file)
    boards = read_boards(text, file)
    wrong = []
    if (made := as_markdown(boards)) != text:
        pairs = zip(made.splitlines(), text.splitlines(), strict=False)
        line = next((i for i, (a, b) in enumerate(pairs, 1) if a != b), min(made.count("\n"), text.count("\n")) + 1)
        wrong.append(
            f"{file}, line {line} does not follow from the answers in the file: it was edited, or written by another version"
        )
    entries = [(board, row, run) for board in boards for row in board.rows for run in row.runs]
    here = [entry for entry in entries if (where.run(entry[2].run_id) / RECORD).is_file()]
    for board, row, run in here:
        wrong += _against_record(board, row, run, where)
    return Checked(len(entries), len(here), wrong)


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except FileNotFoundError:
        raise UserError(f"{file} does not exist; cdbench leaderboard write makes it from the records") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None


def read_boards(text: str, file: Path) -> list[Board]:
    """The data at the end of a leaderboard file.

    Raises:
        UserError: there is none, or it is damaged.
    """
    _, begins, rest = text.rpartition(_FENCE[0])
    data, ends, _ = rest.partition(_FENCE[1])
    if not begins or not ends:
        raise UserError(
            f"{file} does not end in the data that it was made from; cdbench leaderboard write makes it anew"
        )
    try:
        return _BOARDS.validate_json(data)
    except ValidationError as error:
        raise explain(error, str(file)) from None


def _against_record(board: Board, row: RowEntry, run: RunEntry, where: Places) -> list[str]:
    record = read(where.run(run.run_id))
    what = f"{row.name}, run {run.run_id}"
    if record.metrics is None:
        return [f"{what}: its record has no result ({record.status})"]
    if (record.code.digest, record.code.evaluation) != (row.code, board.evaluation):
        return [f"{what}: its record was made by other code ({record.code.digest}) than the file says ({row.code})"]
    mine = _run(record, read_answers(record, where.run(run.run_id)))
    # What it cost differs from one time to the next; what it answered does not.
    kept = ("seed", "problems", "answers", "predictions", "cka_debiased")
    return [f"{what}: {key} is not its record's" for key in kept if getattr(mine, key) != getattr(run, key)]
