"""`cdbench leaderboard`: what was run here, by place, with ties shown as ties."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cdbench import plan
from cdbench.errors import AnswerBad, UserError
from cdbench.files import one_line, write_atomic

if TYPE_CHECKING:
    from cdbench.report.board import Board, Row


@click.group()
def leaderboard() -> None:
    """Rows of this runs folder by place; a difference inside the noise puts no row before another.

    \b
    cdbench leaderboard add my_method.py
    cdbench leaderboard show --task addition_2digit --json
    cdbench leaderboard write
    cdbench leaderboard check
    """


@leaderboard.command()
@click.option("--task", help="Only this task's boards.")
@click.option("--profile", help="Only this profile's boards.")
@click.option("-l", "--long", is_flag=True, help="Also what made each row, and where it is told.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--runs", help="Folder of records and reports [CDBENCH_RUNS; ./runs].")
def show(task: str | None, profile: str | None, long: bool, as_json: bool, runs: str | None) -> None:
    """Show the boards: place, accuracy with its interval, seeds, CKA, cost, and what each row differs from significantly.

    \b
    cdbench leaderboard show --task addition_2digit
    cdbench leaderboard show --long     # with CKA, longer sums, command, commit, code, runs and report page of each row
    """
    from cdbench.report.leaderboard import boards

    where = plan.places(runs, None)
    found = _of_profile(boards(where, task), profile)
    if as_json:
        click.echo(json.dumps([board_json(board, where) for board in found], indent=1))
        return
    for board in found:
        click.echo(board_text(board))
        if long:
            click.echo("\n".join(_made_by(board, where)))


def _made_by(board: "Board", where: plan.Places) -> list[str]:
    """What else was measured of each row of a board, what made it, and the page that tells of it."""
    from cdbench.report.board import placed
    from cdbench.report.formats import number, over_seeds, percent

    lines = []
    for row in placed(board):
        entry, link = row.entry, _page(row, where)
        page = plan.shortest(Path(link)) if link else "no report yet: cdbench report STUDY"
        beside = [f"CKA {over_seeds(entry.measured('cka_debiased'), number)}"]
        beside += [f"{name} {over_seeds(found, percent)}" for name in board.shifts if (found := entry.shifted(name))]
        beside += [f"{over_seeds(found, percent)} of the neurons off"] if (found := entry.measured("sparsity")) else []
        lines += [
            f"  {one_line(f'{entry.name}: {entry.command}')}",
            f"    {', '.join(beside)}",
            f"    commit {one_line(entry.commit)}, code {one_line(entry.code)}, runs {' '.join(entry.run_ids)}",
            f"    {page}",
        ]
    return lines


def _of_profile(found: "list[Board]", profile: str | None) -> "list[Board]":
    kept = [board for board in found if profile is None or profile in board.of_profiles]
    if not kept:
        there = ", ".join(sorted(set.union(*(board.of_profiles for board in found))))
        raise UserError(f"no finished run of profile '{profile}'; there are runs of: {there}")
    return kept


@leaderboard.command()
@click.option("--into", "file", type=click.Path(path_type=Path, dir_okay=False), default="LEADERBOARD.md", show_default=True,
              help="File to write.")  # fmt: skip
@click.option("--task", help="Only this task's boards.")
@click.option("--profile", help="Only this profile's boards.")
@click.option("--force", is_flag=True, help="Take runs off the file that have no record here.")
@click.option("--runs", help="Folder of records and reports [CDBENCH_RUNS; ./runs].")
def write(file: Path, task: str | None, profile: str | None, force: bool, runs: str | None) -> None:
    """Write the boards as Markdown, with the answers that they follow from, so that anybody can check them.

    \b
    cdbench leaderboard write --profile tiny
    """
    from cdbench.report.leaderboard import as_markdown, boards

    found = _of_profile(boards(plan.places(runs, None), task), profile)
    if file.is_file() and not force:
        told = {run_id for board in _before(file) for row in board.rows for run_id in row.run_ids}
        lost = told - {run_id for board in found for row in board.rows for run_id in row.run_ids}
        if lost:
            raise UserError(
                f"{len(lost)} of the {len(told)} runs in {file} would be taken off it: they have no record here, or are of "
                "another task or profile; write --into another file, or --force"
            )
    write_atomic(file, as_markdown(found), "the leaderboard")
    click.echo(file)


def _before(file: Path) -> "list[Board]":
    """What a file has that is to be written; nothing where it is damaged, or no leaderboard: writing makes it anew."""
    from cdbench.report.leaderboard import read_boards

    try:
        return read_boards(file.read_text(), file)
    except (UserError, UnicodeDecodeError):
        return []
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}; write --into another file") from None


@leaderboard.command()
@click.argument("file", type=click.Path(path_type=Path), default="LEADERBOARD.md")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option(
    "--require",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Fail where fewer than N of its runs could be held against records here.",
)
@click.option("--runs", help="Folder of records and reports [CDBENCH_RUNS; ./runs].")
def check(file: Path, as_json: bool, require: int, runs: str | None) -> None:
    """Compute a written leaderboard again: its places from its answers, its answers from the records that are here.

    \b
    cdbench leaderboard check                   # ./LEADERBOARD.md; exit code 3 where it does not hold
    cdbench leaderboard check --require 2       # for CI: two of its runs were made here, and are not forgotten
    """
    from cdbench.report.leaderboard import check as examine

    where = plan.places(runs, None)
    found = examine(file, where)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=1))
    else:
        for sentence in found.wrong:
            click.echo(one_line(sentence))
        for sentence in found.notes:
            click.echo(f"note: {one_line(sentence)}")
        absent, apart = found.runs - found.present, found.present - found.held - found.near
        if not found.wrong:
            gone = f", {absent} have none here" if absent else ""
            gone += (
                f", {found.near} were made again on another kind of machine and are about as accurate"
                if found.near
                else ""
            )
            gone += (
                f", {apart} were made again from models that came out otherwise and could not be held" if apart else ""
            )
            click.echo(f"{file}: every number and place follows from its answers; {found.held} of {found.runs} runs were held "
                       f"against their records{gone}; cost is not compared")  # fmt: skip
    if (held := found.held + found.near) < require:
        raise AnswerBad(
            f"{held} of {found.runs} runs of {file} could be held against a record in {plan.shortest(where.runs)}, and {require} "
            "are required: make them with cdbench run, or name their folder with --runs"
        )
    if found.wrong:
        raise AnswerBad(f"{file} does not hold: {len(found.wrong)} {'fault' if len(found.wrong) == 1 else 'faults'}")


def boards_with(where: plan.Places, task: str, method: str) -> "list[Board]":
    """The boards of a task on which a method stands."""
    from cdbench.report.leaderboard import boards

    return [board for board in boards(where, task) if any(row.method == method for row in board.rows)]


def board_json(board: "Board", where: plan.Places) -> dict[str, Any]:
    """A board for machines."""
    from cdbench.report.board import placed

    return {
        "task": board.task,
        "profile": board.profile,
        "heldout": board.heldout,
        "evaluation": board.evaluation,
        "problems": board.problems,
        "rows": [_row_json(row, board.shifts, where) for row in placed(board)],
    }


def _page(row: "Row", where: plan.Places) -> str | None:
    """Where a row's report is, if there is one."""
    entry = row.entry
    return f"{where.study(entry.study) / 'report' / 'index.html'}#run-{entry.run_ids[0]}" if entry.study else None


def _row_json(row: "Row", shifts: Sequence[str], where: plan.Places) -> dict[str, Any]:
    entry, cka = row.entry, row.entry.measured("cka_debiased")
    return {
        "place": row.place,
        "tied": row.tied,
        "place_between": row.between,
        "name": entry.name,
        "why_unplaced": row.why,
        "accuracy": row.accuracy,
        "low": row.interval.low,
        "high": row.interval.high,
        "seeds": len(entry.runs),
        "failed": entry.failed,
        "cka_debiased": entry.mean("cka_debiased"),
        "cka_debiased_low": cka.interval.low if cka and cka.interval else None,
        "cka_debiased_high": cka.interval.high if cka and cka.interval else None,
        "length_shift": {
            name: {"accuracy": found.mean, **(found.interval._asdict() if found.interval else {})}
            for name in shifts
            if (found := entry.shifted(name))
        },
        "sparsity": entry.mean("sparsity"),
        "train_seconds": entry.mean("train_seconds"),
        "peak_memory_mib": entry.mean("peak_memory_mib"),
        "better_than": list(row.better_than),
        "worse_than": list(row.worse_than),
        "command": entry.command,
        "commit": entry.commit,
        "code": entry.code,
        "run_ids": entry.run_ids,
        "report": _page(row, where),
    }


def board_text(board: "Board") -> str:
    """A board for people."""
    from cdbench.report.board import placed
    from cdbench.report.formats import number, percent

    evaluation = f"evaluation {board.evaluation[:8]}" if board.evaluation else "evaluated by an older version"
    lines = [
        one_line(
            f"{board.task}, profile {board.profile}: {board.problems} held-out problems ({board.heldout[:8]}), {evaluation}"
        )
    ]
    heads = ("place", "row", "accuracy", "95 %", "seeds", "CKA", "training", "memory", "better (>) or worse (<) than")
    table: list[tuple[str, ...]] = [heads]
    rows = placed(board)
    ranked = sum(row.place is not None for row in rows)
    for row in rows:
        entry = row.entry
        place = row.why if row.place is None else f"{row.place}{'=' if row.tied else ''}"
        place += f" ({row.between[0]}–{row.between[1]})" if row.between else ""
        seconds, memory = entry.mean("train_seconds"), entry.mean("peak_memory_mib")
        failed = f" (+{entry.failed} failed)" if entry.failed else ""
        table.append(
            (
                place, entry.name, percent(row.accuracy), f"[{percent(row.interval.low)}, {percent(row.interval.high)}]",
                f"{len(entry.runs)}{failed}", number(entry.mean("cka_debiased")),
                "–" if seconds is None else f"{seconds:.0f} s", "–" if memory is None else f"{memory:.0f} MiB",
                _others(row, ranked),
            )
        )  # fmt: skip
    table = [tuple(one_line(cell) for cell in line) for line in table]
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines += [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
    ]
    lines += [
        "  = shares its place: it counts the rows that are significantly better (paired over seeds and problems, Holm-corrected)",
        "  and is not before that of a row of higher accuracy; in brackets the places that it could have, as far as is shown",
    ]
    if "smoke" in board.of_profiles:
        lines.append("  the smoke profile shows that the flow works: its numbers and places mean nothing")
    return "\n".join(lines)


def _others(row: "Row", ranked: int) -> str:
    told = []
    for sign, others in ((">", row.better_than), ("<", row.worse_than)):
        if others:
            told.append(f"{sign} {'all others' if len(others) == ranked - 1 else _few(others)}")
    return "; ".join(told) or "–"


def _few(names: Sequence[str], most: int = 3) -> str:
    """As many as fit on a line; --json and the written board have all."""
    return ", ".join(names) if len(names) <= most + 1 else f"{', '.join(names[:most])} and {len(names) - most} more"
