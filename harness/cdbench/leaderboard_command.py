"""`cdbench leaderboard`: what was run here, by place, with ties shown as ties."""

import json
from typing import TYPE_CHECKING, Any

import click

from cdbench import plan

if TYPE_CHECKING:
    from cdbench.report.leaderboard import Board, Row


@click.group()
def leaderboard() -> None:
    """Rows of this runs folder by place; rows that nothing sets apart share one.

    \b
    cdbench leaderboard add my_method.py
    cdbench leaderboard show --task addition_2digit --json
    """


@leaderboard.command()
@click.option("--task", help="Only this task's boards.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--runs", help="Folder of records and reports [CDBENCH_RUNS; ./runs].")
def show(task: str | None, as_json: bool, runs: str | None) -> None:
    """Show the boards: place, accuracy with its interval, seeds, CKA, cost, and what each row differs from significantly.

    \b
    cdbench leaderboard show --task addition_2digit
    """
    from cdbench.report.leaderboard import boards

    found = boards(plan.places(runs, None), task)
    if as_json:
        click.echo(json.dumps([board_json(board) for board in found], indent=1))
        return
    for board in found:
        click.echo(board_text(board))


def boards_with(where: plan.Places, task: str, method: str) -> "list[Board]":
    """The boards of a task on which a method stands."""
    from cdbench.report.leaderboard import boards

    return [board for board in boards(where, task) if any(row.group.method == method for row in board.rows)]


def board_json(board: "Board") -> dict[str, Any]:
    """A board for machines."""
    return {
        "task": board.task,
        "profile": board.profile,
        "heldout": board.heldout,
        "evaluation": board.evaluation,
        "problems": board.problems,
        "rows": [row_json(row) for row in board.rows],
    }


def row_json(row: "Row") -> dict[str, Any]:
    """A row for machines."""
    group = row.group
    return {
        "place": row.place,
        "tied": row.tied,
        "name": row.name,
        "why_unplaced": row.why,
        "accuracy": group.mean,
        "low": group.interval.low,
        "high": group.interval.high,
        "seeds": len(group.records),
        "failed": len(group.failed),
        "cka_debiased": group.metric("cka.debiased_mean"),
        "train_seconds": group.metric_cost("train_seconds"),
        "peak_memory_mib": group.metric_cost("train_peak_memory_mib"),
        "better_than": list(row.better_than),
        "worse_than": list(row.worse_than),
        "command": row.command,
        "commit": row.commit,
        "code": row.code,
        "run_ids": group.run_ids,
    }


def board_text(board: "Board") -> str:
    """A board for people."""
    from cdbench.report.formats import number, percent

    evaluation = f"evaluation {board.evaluation[:8]}" if board.evaluation else "evaluated by an older version"
    lines = [
        f"{board.task}, profile {board.profile}: {board.problems} held-out problems ({board.heldout[:8]}), {evaluation}"
    ]
    table = [("place", "row", "accuracy", "95 %", "seeds", "CKA", "training", "better than")]
    for row in board.rows:
        group = row.group
        place = row.why if row.place is None else f"{row.place}{'=' if row.tied else ''}"
        seconds = group.metric_cost("train_seconds")
        failed = f" (+{len(group.failed)} failed)" if group.failed else ""
        table.append(
            (
                place, row.name, percent(group.mean), f"[{percent(group.interval.low)}, {percent(group.interval.high)}]",
                f"{len(group.records)}{failed}", number(group.metric("cka.debiased_mean")),
                "–" if seconds is None else f"{seconds:.0f} s", _others(row, board),
            )
        )  # fmt: skip
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines += [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
    ]
    lines.append("  = shares its place: nothing sets these rows apart (paired over seeds and problems, Holm-corrected)")
    return "\n".join(lines)


def _others(row: "Row", board: "Board") -> str:
    ranked = [other for other in board.rows if other.place is not None]
    if row.place is None or not row.better_than:
        return "–"
    return "all others" if len(row.better_than) == len(ranked) - 1 else ", ".join(row.better_than)
