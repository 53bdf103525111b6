"""The leaderboard: rows are records. `LEADERBOARD.md` holds the answers that its places follow from, so it can be checked.

Whoever has the file can compute every number in it again; whoever has the records can hold it against them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from cdbench.config import TEACHER, Profile, Scalar, available, build_profile, explain, show
from cdbench.errors import UserError
from cdbench.plan import STUDY_FILE, Places, flat, read_study
from cdbench.provenance import evaluation_digest
from cdbench.record import RECORD, Record, read
from cdbench.report.anatomy import Answers
from cdbench.report.board import FOLDER, PROFILES, Answered, Board, RowEntry, RunEntry, pack, placed
from cdbench.report.build import template
from cdbench.report.collect import UNTRAINED, machine_of, read_answers
from cdbench.report.formats import percent

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
    """Run id -> studies with a report that shows it; of a folder's name that fits no link, none."""
    found: dict[str, set[str]] = {}
    for path in where.runs.glob(f"*/{STUDY_FILE}"):
        if (path.parent / "report" / "index.html").is_file() and FOLDER.fullmatch(path.parent.name):
            for run_id in read_study(path.parent.name, where).run_ids:
                found.setdefault(run_id, set()).add(path.parent.name)
    return found


def _board(records: Sequence[Record], failed: Sequence[Record], studies: dict[str, set[str]], where: Places) -> Board:
    rows: dict[str, list[Record]] = {}
    for record in records:
        rows.setdefault(_row_key(record), []).append(record)
    made: list[tuple[Record, RowEntry]] = []
    for _, members in sorted(rows.items()):
        asked = {_asked(record) for record in members}
        lost = sum(_asked(record) in asked for record in failed)
        shown = set.intersection(*(studies.get(r.run_id, set()) for r in members))
        made.append((members[0], _row(members, lost, min(shown, default=""), where)))
    first = records[0]
    return Board(
        task=first.spec.task,
        profile=PROFILES.join(sorted({record.spec.profile.name for record in records})),
        heldout=str(first.inputs.get("heldout", "")),
        evaluation=first.code.evaluation,
        rows=_named_apart(made),
    )


def _row_key(record: Record) -> str:
    """What runs of one row have in common: all but the seed."""
    if record.spec.method == TEACHER:
        return TEACHER  # not trained: whatever the settings of a study, it is the same model
    params = record.params or record.spec.params
    return json.dumps([record.spec.method, params, _settings(record.spec.profile), record.code.digest], sort_keys=True)


def _asked(record: Record) -> str:
    """The same from the spec alone: a run that failed may not have come to know its hyperparameters."""
    spec = record.spec
    return json.dumps(
        [spec.method, spec.task, spec.params, _settings(spec.profile), record.code.digest], sort_keys=True
    )


def _row(members: Sequence[Record], failed: int, study: str, where: Places) -> RowEntry:
    first = members[0]
    # The teacher of several studies is one run under several ids.
    members = sorted({record.spec.seed: record for record in reversed(members)}.values(), key=lambda r: r.spec.seed)
    name = first.spec.method
    changes = _changes(first)
    # What has no value cannot be set: the profile of that name has got a key since.
    known = {key: value for key, value in changes.items() if value is not None}
    told = [f"{key}={show(value)}" for key, value in known.items()]
    told += [f"{first.spec.profile.name} as it was"] if len(known) < len(changes) else []
    if told and name != TEACHER:
        name += f" ({', '.join(told)})"
    seeds = ",".join(str(record.spec.seed) for record in members)
    method = "base" if first.spec.method == TEACHER else first.spec.method  # the teacher runs beside every row
    words = ["cdbench", "run", method, "--task", first.spec.task, "--profile", first.spec.profile.name]
    words += ["--seeds", seeds] + [word for k, v in known.items() for word in ("--set", f"{k}={show(v)}")]
    words += [f"# profile as of {first.code.commit[:12]}"] if len(known) < len(changes) else []
    return RowEntry(
        name=name,
        method=first.spec.method,
        command=" ".join(words),
        commit=first.code.commit[:12] + ("+changes" if any(record.code.dirty for record in members) else ""),
        code=first.code.digest,
        study=study,
        failed=failed,
        runs=[_run(record, read_answers(record, where.run(record.run_id))) for record in members],
    )


def _run(record: Record, answers: Answers) -> RunEntry:
    assert record.metrics is not None
    cka, masks = record.metrics.cka, record.metrics.masks.get("student")
    asked = {name: [p.correct for p in split] for name, split in answers.items()}
    return RunEntry(
        run_id=record.run_id,
        seed=record.spec.seed,
        problems=len(asked["test"]),
        answers=pack(asked["test"]),
        shift={
            name.removeprefix("shift_"): Answered(problems=len(hits), answers=pack(hits))
            for name, hits in sorted(asked.items())
            if name.startswith("shift_") and len(hits) > 1  # records from before the least sizes were asked for
        },
        predictions=record.artefacts["predictions.jsonl"],
        cka_debiased=cka.debiased_mean if cka else None,
        sparsity=masks.sparsity if masks else None,
        worked=sum(p.worked for p in answers["test"]) / len(answers["test"]),
        train_seconds=record.cost.get("train_seconds"),
        peak_memory_mib=record.cost.get("train_peak_memory_mib"),
        machine=machine_of(record),
    )


def _changes(record: Record) -> dict[str, Scalar]:
    """What was set differently from the profile of that name, and from the method's defaults."""
    changes: dict[str, Scalar] = {f"method.{key}": value for key, value in record.spec.params.items()}
    if record.spec.profile.name in available("profiles"):
        usual = _settings(build_profile(record.spec.profile.name, {}))
        changes |= {key: value for key, value in _settings(record.spec.profile).items() if usual.get(key) != value}
    return changes


def _settings(profile: Profile) -> dict[str, Scalar]:
    # What no number depends on makes no row of its own; a run id leaves it out, too.
    apart = {"name", "description", "limits", "timeout_minutes", "gpu_memory_gib"}
    return flat(profile.model_dump(mode="json", exclude=apart))


def _named_apart(rows: Sequence[tuple[Record, RowEntry]]) -> list[RowEntry]:
    """Rows of one name get what they differ in added to it: settings, or the code."""
    made = []
    for record, row in rows:
        same = [other for other, entry in rows if entry.name == row.name]
        mine = _settings(record.spec.profile)
        differ = {k: v for k, v in mine.items() if any(_settings(r.spec.profile).get(k) != v for r in same)}
        apart = [f"{key}={show(value)}" for key, value in differ.items()]
        if any(other.code.digest != record.code.digest for other in same):
            apart.append(f"code {record.code.digest[:6]}")
        made.append(row.model_copy(update={"name": f"{row.name} [{', '.join(apart)}]"}) if apart else row)
    return made


def as_markdown(boards: Sequence[Board]) -> str:
    """LEADERBOARD.md: the boards for people, then the same as data."""
    data = json.dumps([board.model_dump(mode="json") for board in boards], indent=1)
    shown = [(board, placed(board)) for board in boards]
    return template("leaderboard.md.j2").render(boards=shown) + _FENCE[0] + data + _FENCE[1]


@dataclass(frozen=True)
class Checked:
    """What was held against what. `wrong` is empty where the file is right; `notes` are worth knowing all the same.

    Attributes:
        runs: how many the file names.
        present: of these have a record here.
        held: of these have the record's answers, each one.
        near: of these were made again on a machine of another kind, which gives other answers, and are about as accurate.
    """

    runs: int
    present: int
    held: int
    near: int
    wrong: list[str]
    notes: list[str]


def check(file: Path, where: Places) -> Checked:
    """Computes a leaderboard file again from its own data, and its data from those of the records it names that are here.

    A board whose runs are all here must be the one that would be written today, but for what it cost: a row or a seed that was
    left out is a fault as much as one that was made up.

    Raises:
        UserError: the file is missing, or holds no data that can be understood.
    """
    text = _text(file)
    told = read_boards(text, file)
    wrong = []
    if (made := as_markdown(told)) != text:
        pairs = zip(made.splitlines(), text.splitlines(), strict=False)
        line = next((i for i, (a, b) in enumerate(pairs, 1) if a != b), min(made.count("\n"), text.count("\n")) + 1)
        wrong.append(
            f"{file}, line {line} does not follow from the answers in the file: it was edited, or written by another version"
        )
    notes = [
        f"{board.task}, profile {board.profile}: judged by evaluation {board.evaluation or 'of an older version'}, today's is "
        f"{evaluation_digest()}; cdbench reproduce and cdbench leaderboard write bring it up to date"
        for board in told
        if board.evaluation != evaluation_digest()
    ]
    ids = [run.run_id for board in told for row in board.rows for run in row.runs]
    here = {run_id for run_id in ids if (where.run(run_id) / RECORD).is_file()}
    ours = boards(where) if here else []
    seen = _Seen([], [], [])
    for board in told:
        wrong += _against_records(board, ours, here, seen, notes) + _of_other_profiles(board, here, where)
    notes += [
        f"{board.task}, profile {board.profile}: a board of {len(board.rows)} rows has its records here and is not in the file"
        for board in ours
        if not here & {run_id for row in board.rows for run_id in row.run_ids}
    ]
    return Checked(len(ids), len(here), len(seen.held), len(seen.near), wrong, notes + seen.near + seen.apart)


@dataclass(frozen=True)
class _Seen:
    """What is told of runs that have a record here and are no fault.

    Attributes:
        held: have the record's answers.
        near, apart: were made again on machines of another kind, and are about as accurate, or of models that came out otherwise.
    """

    held: list[str]
    near: list[str]
    apart: list[str]


def _against_records(board: Board, ours: Sequence[Board], here: set[str], seen: _Seen, notes: list[str]) -> list[str]:
    own = {run_id for row in board.rows for run_id in row.run_ids}
    mine = [each for each in ours if own & {run_id for row in each.rows for run_id in row.run_ids}]
    wrong = []
    if len(mine) > 1:
        wrong.append(f"{board.task}: the file puts on one board what cannot be compared")
    for each in mine:
        keys = ("task", "heldout")
        wrong += [
            f"{board.task}: {key} is not its records' ({getattr(board, key)}, theirs {getattr(each, key)})"
            for key in keys
            if getattr(each, key) != getattr(board, key)
        ]
        if each.evaluation != board.evaluation:  # another evaluation may answer the same, and is held to it
            notes.append(
                f"{board.task}, profile {board.profile}: judged by evaluation {board.evaluation}, "
                f"its records here by {each.evaluation}"
            )
    rows = [row for each in mine for row in each.rows]
    by_run = {run_id: row for row in rows for run_id in row.run_ids}
    moved = _models_moved(board, by_run)
    if moved > _APART:
        notes.append(
            f"{board.task}, profile {board.profile}: the models themselves came out otherwise here, by {percent(moved)}; runs "
            "made from them cannot be held against the file"
        )
    for row in board.rows:
        wrong += _row_against_records(row, by_run, here, seen, moved)
    # What they answered is held above; code may change where no answer depends on it.
    apart = sum(any(r in by_run and by_run[r].code != row.code for r in row.run_ids) for row in board.rows)
    if apart:
        notes.append(
            f"{board.task}, profile {board.profile}: {apart} of {len(board.rows)} rows are of other code than their records"
        )
    if own <= here:
        wrong += [
            f"{row.name} has its records here and is not in the file" for row in rows if not own & set(row.run_ids)
        ]
    return wrong


def _of_other_profiles(board: Board, here: set[str], where: Places) -> list[str]:
    """Held against the runs that the file names: other profiles may share a board here, and some of its runs may not be here."""
    own = {run_id for row in board.rows for run_id in row.run_ids}
    theirs = {read(where.run(run_id)).spec.profile.name for run_id in own & here}
    right = theirs == board.of_profiles if own <= here else theirs <= board.of_profiles
    named = f"({board.profile}, theirs {PROFILES.join(sorted(theirs))})"
    return [] if right else [f"{board.task}: profile is not its records' {named}"]


def _models_moved(board: Board, by_run: Mapping[str, RowEntry]) -> float:
    """By how much the accuracy of what nobody trained differs here: small models learn otherwise on another processor."""
    pairs = [
        (run, mine)
        for row in board.rows
        for run in (row.runs if row.method in UNTRAINED else ())
        if (ours := by_run.get(run.run_id)) and _is_elsewhere(run, mine := _counterpart(run, ours))
    ]
    return max((abs(float(run.hits.mean() - mine.hits.mean())) for run, mine in pairs), default=0.0)


def _counterpart(run: RunEntry, ours: RowEntry) -> RunEntry:
    return next(each for each in ours.runs if each.run_id == run.run_id)


def _is_elsewhere(run: RunEntry, mine: RunEntry) -> bool:
    return bool(run.machine) and mine.machine != run.machine and mine.seed == run.seed


def _numbers(run: RunEntry) -> dict[str, float]:
    """What a run made again elsewhere has about the same of."""
    found = {"accuracy": float(run.hits.mean()), "share worked out": run.worked}
    found |= {f"accuracy on {name}": float(each.hits.mean()) for name, each in run.shift.items()}
    others = {"CKA": run.cka_debiased, "share of neurons off": run.sparsity}
    return found | {name: value for name, value in others.items() if value is not None}


def _row_against_records(
    row: RowEntry, by_run: Mapping[str, RowEntry], here: set[str], seen: _Seen, moved: float
) -> list[str]:
    """`moved`: how far the models here are from those of the file."""
    wrong = []
    for run in row.runs:
        if run.run_id not in here:
            continue
        what = f"{row.name}, run {run.run_id}"
        if ours := by_run.get(run.run_id):
            wrong += _run_against_record(run, ours, what, seen, moved)
            wrong += [f"{what}: its record is of {ours.method}"] if row.method != ours.method else []
        else:
            wrong.append(f"{what}: its record has no result, or is not of this board")
    if set(row.run_ids) <= here and not wrong:
        ours = by_run[row.run_ids[0]]
        # Not the commit: whoever makes the runs again at a later one, from the same code, has the same row.
        keys = ("name", "command", "failed", "run_ids")
        wrong += [
            f"{row.name}: {key} is {getattr(row, key)}, that of its records {getattr(ours, key)}"
            for key in keys
            if getattr(row, key) != getattr(ours, key)
        ]
    return wrong


def _run_against_record(run: RunEntry, ours: RowEntry, what: str, seen: _Seen, moved: float) -> list[str]:
    mine = _counterpart(run, ours)
    differ = [key for key in _KEPT if getattr(mine, key) != getattr(run, key)]
    if not differ:
        seen.held.append(what)
        return []
    if not _is_elsewhere(run, mine):
        return [f"{what}: {key} is not its record's" for key in differ]
    told = f"{what}: {', '.join(differ)} differ from the record here, which is of {mine.machine}, not {run.machine}"
    if moved > _APART:
        seen.apart.append(told)
        return []
    if far := _too_far(run, mine, ours, moved):
        return [f"{told}; {each}: more than another machine should explain" for each in far]
    seen.near.append(f"{told}; accuracy is {100 * run.hits.mean():.1f} % and here {100 * mine.hits.mean():.1f} %")
    return []


def _too_far(run: RunEntry, mine: RunEntry, ours: RowEntry, moved: float) -> list[str]:
    """What a run of the file has quite otherwise than the same spec here.

    Floating-point arithmetic is not the same everywhere, and a run made elsewhere is like one of another seed, of models that
    are a little otherwise, too. How far seeds lie apart is asked of those here: the file's may be made up.
    """
    told, found = _numbers(run), _numbers(mine)
    if told.keys() != found.keys():
        return [f"only one of the two has {', '.join(sorted(told.keys() ^ found.keys()))}"]
    far = []
    for name, value in told.items():
        values = [numbers[name] for each in ours.runs if name in (numbers := _numbers(each))]
        if abs(value - found[name]) > _APART + moved + max(values) - min(values):
            far.append(f"{name} is {value:.3f} and here {found[name]:.3f}")
    return far


_APART = 0.1
"""How far numbers of one spec on two machines may lie apart, more than those of its seeds and of its models do."""
_KEPT = ("seed", "problems", "answers", "shift", "predictions", "cka_debiased", "sparsity", "worked")
"""What it cost differs from one time to the next, and is not compared; what it answered does not."""


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
        found = _BOARDS.validate_json(data)
    except ValidationError as error:
        raise explain(error, str(file)) from None
    if not found:
        raise UserError(f"{file} holds no board")
    return found
