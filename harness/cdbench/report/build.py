"""Renders a study: HTML (one file, no network), Markdown, CSV."""

import csv
import io
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cdbench import __version__
from cdbench.config import TEACHER, HubModel, Profile, ZooModel
from cdbench.files import write_atomic
from cdbench.plan import Places, SavedStudy
from cdbench.report import ledger as forms
from cdbench.report.claims import Verdict, counts, gradient_shares, judge
from cdbench.report.collect import Group, StudyData, collect, mean_of, reports_folder, short
from cdbench.report.formats import number, p_value, percent, points
from cdbench.report.ledger import Claim, FailedRun, Ledger, read_ledger
from cdbench.report.pictures import circuits_of, draw_all

Row = dict[str, Any]


def write_report(saved: SavedStudy, where: Places) -> Path:
    """Writes runs/<study>/report/ and returns the HTML page.

    Raises:
        UserError: the study has no record yet, or a record or prediction file is damaged.
    """
    data = collect(saved, where)
    folder = saved.folder / "report"
    context = build_context(data)
    environment = _environment()
    write_atomic(folder / "index.html", environment.get_template("report.html.j2").render(context), "the report")
    write_atomic(folder / "report.md", environment.get_template("report.md.j2").render(context), "the report")
    write_atomic(folder / "table1.csv", to_csv(context["rows"]), "the report")
    write_atomic(folder / "claims.csv", to_csv(context["ledger"]), "the report")
    write_atomic(folder / "runs.csv", to_csv(context["runs"]), "the report")
    return folder / "index.html"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(reports_folder() / "templates"),
        # Only HTML is escaped as HTML; Markdown has a filter of its own.
        autoescape=lambda name: bool(name and name.endswith(".html.j2")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "points": points,
        "number": number,
        "p": p_value,
        "md": markdown_cell,
        "span": lambda pair: f"[{percent(pair[0])}, {percent(pair[1])}]",
    }
    return environment


def markdown_cell(text: object) -> str:
    """Text that cannot break out of a Markdown table."""
    cell = re.sub(r"([\\|`\[\]!*_])", r"\\\1", str(text)).replace("<", "&lt;").replace(">", "&gt;")
    return " ".join(cell.split())


def to_csv(rows: Sequence[Row]) -> str:
    """CSV of the scalar columns. A text that a spreadsheet would take for a formula gets an apostrophe."""
    columns = [key for key, value in rows[0].items() if not isinstance(value, list | tuple | dict)] if rows else []
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _csv_cell(row[key]) for key in columns})
    return buffer.getvalue()


def _csv_cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def build_context(data: StudyData) -> Row:
    """Everything that the templates show."""
    # The reference row is not trained: a study's training budget stands in the other rows.
    trained = next((r for r in data.records if r.spec.method != TEACHER), data.records[0])
    profile = trained.spec.profile
    ledger = read_ledger()
    verdicts = judge(ledger.claim, data)
    rows = [table_row(group, data, ledger) for group in data.groups]
    return {
        "title": data.saved.study.title,
        "study": data.saved,
        "version": __version__,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "profile": profile,
        "differences": differences(profile, data),
        "rows": rows,
        "shift_names": sorted({name for row in rows for name in row["shift"]}),
        "grid": grid(data, ledger.failed_run),
        "failed_claim": ledger.failed_run,
        "verdicts": [verdict_row(verdict) for verdict in verdicts],
        "verdict_counts": counts(verdicts),
        "ledger": [ledger_row(verdict) for verdict in verdicts],
        "pictures": draw_all(data, rows),
        "circuits": circuits_of(data),
        "failures": data.failures,
        "noted": [record for record in data.records if record.notes],
        "missing": data.missing,
        "runs": [run_row(record) for record in data.records],
        "environment": next((r.environment for r in data.records if r.environment), {}),
        "codes": sorted({(r.code.digest, r.code.commit, r.code.dirty) for r in data.records}),
        "inputs": next((r.inputs for r in data.records if r.inputs), {}),
        "first_prompt": next(((m.first_prompt, m.first_prompt_ids) for r in data.records if (m := r.metrics)), None),
        "seeds": sorted({r.spec.seed for r in data.records}),
        "command": data.saved.command,
        "n_test": profile.data.test,
    }


def verdict_row(verdict: Verdict) -> Row:
    """One row of the claim ledger."""
    claim, found = verdict.claim, verdict.evidence
    shown = _SHOWN[found.unit] if found else None
    paper: float | None = getattr(claim, "paper", None)
    as_share = claim.decided_by in ("value", "at_point", "metric")
    return {
        "id": claim.id,
        "says": claim.says,
        "source": claim.source,
        "verdict": verdict.outcome,
        "paper": "–" if paper is None else percent(paper) if as_share else points(paper),
        "asserted": asserted(claim),
        "effect": shown(found.effect) if found and shown else "–",
        "interval": f"[{shown(found.interval.low)}, {shown(found.interval.high)}]" if found and shown else "–",
        "p_holm": None if verdict.p_holm is None else p_value(verdict.p_holm),
        "seeds": found.seeds if found else None,
        "why": verdict.why,
        "run_ids": list(found.run_ids) if found else [],
    }


def ledger_row(verdict: Verdict) -> Row:
    """The same for a spreadsheet: numbers as they are."""
    found = verdict.evidence
    return {
        "id": verdict.claim.id,
        "verdict": verdict.outcome,
        "says": verdict.claim.says,
        "source": verdict.claim.source,
        "asserted": asserted(verdict.claim),
        "unit": found.unit if found else "",
        "paper": getattr(verdict.claim, "paper", None),
        "effect": found.effect if found else None,
        "low": found.interval.low if found else None,
        "high": found.interval.high if found else None,
        "p_holm": verdict.p_holm,
        "seeds": found.seeds if found else None,
        "seeds_to_decide": found.more_seeds if found and verdict.outcome == "inconclusive" else None,
        "why": verdict.why,
        "runs": " ".join(found.run_ids) if found else "",
    }


_SHOWN: dict[str, Callable[[float | None], str] | None] = {
    "points": points,
    "share": percent,
    "correlation": number,
    "ratio": number,
    "mathematics": None,
}


def asserted(claim: Claim) -> str:
    """What would have to be seen, in symbols."""
    text = "–"
    split = "" if getattr(claim, "split", "test") == "test" else f" on {getattr(claim, 'split', '')}"
    match claim:
        case forms.Difference():
            text = f"{claim.high} − {claim.low} > {100 * claim.margin:g}"
        case forms.Equivalence():
            text = f"|{claim.one} − {claim.other}| < {100 * claim.margin:g}"
        case forms.Order():
            text = " > ".join(claim.rows)
        case forms.Value():
            text = f"|{claim.row} − {percent(claim.paper)}| < {100 * claim.margin:g}"
        case forms.AtPoint():
            where = ", ".join(f"{short(key)} = {value:g}" for key, value in claim.at.items())
            text = f"{claim.row} at {where} ≤ {percent(claim.at_most)}"
        case forms.GradientShare():
            text = f"λ·‖∇{claim.term}‖ / ‖∇{claim.of}‖ > 1"
        case forms.Metric():
            ends = ("" if end is None else f"{end:g}" for end in (claim.at_least, claim.at_most))
            text = f" ≤ {claim.metric} ≤ ".join(ends).strip(" ≤")
        case forms.Trend():
            text = f"rank correlation of {claim.series} with {claim.against} {'>' if claim.sign > 0 else '<'} 0"
        case forms.Mathematics():
            text = f"the law {claim.law} {'asserts' if claim.law_says else 'denies'} it"
    return text + split


def table_row(group: Group, data: StudyData, ledger: Ledger) -> Row:
    """One row of Table 1."""
    # A swept row is not the paper's row, even where one of its points is.
    printed = [] if group.point else ledger.table1
    paper = next((row for row in printed if (row.method, row.task) == (group.method, group.task)), None)
    teacher = data.group(TEACHER, group.task)
    ok = bool(group.records)
    shift = sorted({name for r in group.records if r.metrics for name in r.metrics.length_shift})
    return {
        "name": group.name,
        "method": group.method,
        "task": group.task,
        "paper": paper.paper if paper else None,
        "paper_source": paper.source if paper else "",
        "mean": group.mean if ok else None,
        "low": group.interval[0] if ok else None,
        "high": group.interval[1] if ok else None,
        "interval": group.interval if ok else None,
        "per_seed": group.per_seed if ok else [],
        "gap": group.mean - teacher.mean if ok and teacher and group.method != TEACHER else None,
        "cka_debiased": group.metric("cka.debiased_mean"),
        "cka_biased": group.metric("cka.biased_mean"),
        "sparsity": group.metric("masks.student.sparsity"),
        "overlap": group.metric("masks.student.overlap"),
        "format_errors": group.metric("format_errors"),
        "strict": group.metric("strict.value"),
        "shift": {name: group.metric(f"length_shift.{name}.value") for name in shift},
        "seeds": len(group.records),
        "identical": ok and len(group.records) > 1 and bool((group.hits == group.hits[0]).all()),
        "failed": len(group.failed),
        "seconds": group.metric_cost("train_seconds"),
        "params": next((r.params for r in group.records), {}),
        "run_ids": group.run_ids,
    }


def run_row(record: Any) -> Row:
    """One row of the list of runs."""
    metrics = record.metrics
    return {
        "run_id": record.run_id,
        "label": record.spec.label,
        "status": record.status,
        "error": record.error,
        "accuracy": metrics.accuracy.value if metrics else None,
        "low": metrics.accuracy.low if metrics else None,
        "high": metrics.accuracy.high if metrics else None,
        "train_seconds": record.cost.get("train_seconds"),
        "evaluate_seconds": record.cost.get("evaluate_seconds"),
        "peak_memory_mib": record.cost.get("train_peak_memory_mib"),
        "code_digest": record.code.digest,
        "started": record.started,
    }


def differences(profile: Profile, data: StudyData) -> list[str]:
    """How this study differs from the paper's setting, in sentences made from the profile."""
    told = []
    for role, paper in (("teacher", "Llama-3-8B"), ("student", "Llama-3.2-1B")):
        config = profile.teacher if role == "teacher" else profile.student
        if isinstance(config, ZooModel):
            told.append(
                f"The {role} is a Llama of {config.layers} layers and width {config.hidden}, trained from scratch on this "
                f"task; the paper's is {paper}, pretrained on text."
            )
        elif not (
            isinstance(config, HubModel) and config.repo.endswith(paper.replace("Llama-3-8B", "Meta-Llama-3-8B"))
        ):
            told.append(
                f"The {role} is {getattr(config, 'repo', getattr(config, 'path', ''))}; the paper's is {paper}."
            )
    training = profile.training
    if training.epochs != 50:
        told.append(f"{training.epochs} epochs instead of 50.")
    if training.lr != 1e-4 or training.batch_size != 32:
        told.append(f"Learning rate {training.lr:g} and batch size {training.batch_size} instead of 1e-4 and 32.")
    leaked = next((r.inputs.get("test_twins_in_train") for r in data.records if r.inputs), None)
    if profile.data.split == "strict":
        told.append(
            f"No twin (a+b, b+a) of a test problem is in the training split ({leaked} of {profile.data.test} found); the "
            "paper's released split has 407 of 1,000."
        )
    else:
        told.append(
            f"{leaked} of {profile.data.test} test problems have a twin in the training split, as in the paper's."
        )
    told.append(
        "KL has the teacher's distribution first, as distillation and paper B have it; paper A's formula prints the "
        "student's first."
    )
    told.append(
        "The untouched student (base) and the fine-tuned one are two rows; the paper's table has one (errata A3)."
    )
    told.append(
        "The paper's code keeps the checkpoint of best test accuracy; here the test split chooses nothing (errata A10)."
    )
    if profile.name == "smoke":
        told.insert(0, "This is the smoke profile: it shows that the flow works. Its numbers mean nothing.")
    return told


def grid(data: StudyData, failed: FailedRun) -> Row | None:
    """The 2x2 of the failed-run study: λ down, learning rate across; None where the study sweeps something else."""
    keys = ("method.alignment_weight", "training.lr")
    groups = [g for g in data.groups if all(key in g.point for key in keys)]
    if not groups:
        return None
    weights, lrs = (sorted({float(g.point[key]) for g in groups}) for key in keys)
    cells: dict[tuple[float, float], Row] = {}
    for group in groups:
        weight, lr = (float(group.point[key]) for key in keys)
        ok = bool(group.records)
        cells[weight, lr] = {
            "mean": group.mean if ok else None,
            "interval": group.interval if ok else None,
            "seeds": len(group.records),
            "failed": len(group.failed),
            "share": mean_of(gradient_shares(group, weight, "cka", "kl")),
            "marked": weight == failed.weight and lr == failed.lr,
            "run_ids": group.run_ids,
        }
    return {"weights": weights, "lrs": lrs, "cells": cells}
