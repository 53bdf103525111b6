"""Renders a study: HTML (one file, no network), Markdown, LaTeX, CSV."""

import csv
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from cdbench.files import write_atomic
from cdbench.plan import Places, SavedStudy
from cdbench.report.collect import collect, reports_folder
from cdbench.report.context import build_context
from cdbench.report.escaping import Escaped, csv_cell, markdown_cell, markdown_code, tex, tex_comment
from cdbench.report.formats import Measured, mean_and_interval, number, over_seeds, p_value, percent, points, seconds

PAGES = {
    "index.html": "report.html.j2",
    "report.md": "report.md.j2",
    "table1.tex": "table1.tex.j2",
    "claims.tex": "claims.tex.j2",
}
TABLES = {
    "table1.csv": "rows",
    "claims.csv": "ledger",
    "errors.csv": "error_table",
    "carries.csv": "carry_table",
    "masks.csv": "mask_table",
    "grid.csv": "grid_table",
    "circuits.csv": "circuit_table",
    "pairs.csv": "pair_table",
    "shift.csv": "shift_table",
    "effects.csv": "effect_table",
    "cost.csv": "costs",
    "runs.csv": "runs",
}


def write_report(saved: SavedStudy, where: Places) -> Path:
    """Writes runs/<study>/report/ and returns the HTML page.

    Raises:
        UserError: the study has no record yet, or a record or prediction file is damaged.
    """
    context = build_context(collect(saved, where))
    context["figure_data"] = {
        anchor: to_csv(picture.data) for anchor, picture in context["pictures"].items() if picture.data
    }
    folder = saved.folder / "report"
    for file, name in PAGES.items():
        write_atomic(folder / file, template(name).render(context), "the report")
    for file, key in TABLES.items():
        if context[key]:
            write_atomic(folder / file, to_csv(context[key]), "the report")
        else:  # of an earlier report
            (folder / file).unlink(missing_ok=True)
    return folder / "index.html"


_ESCAPES: dict[str, Callable[[object], str]] = {".md": markdown_cell, ".tex": tex}


def template(name: str) -> Template:
    """A template of reports/templates; its name's end before `.j2` says how its text is escaped."""
    return _environment(Path(name.removesuffix(".j2")).suffix).get_template(name)


def _environment(suffix: str) -> Environment:
    """Whatever an expression of a template gives is escaped for its format, unless a filter has done so."""
    environment = Environment(
        loader=FileSystemLoader(reports_folder() / "templates"),
        autoescape=suffix == ".html" and (lambda name: bool(name and name.endswith(".html.j2"))),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    measured = _interval_below if suffix == ".html" else over_seeds
    if escape := _ESCAPES.get(suffix):
        environment.finalize = lambda value: value if isinstance(value, Escaped) else escape(value)
    environment.filters |= {
        "percent": percent,
        "points": points,
        "number": number,
        "seconds": seconds,
        "p": p_value,
        "tex_comment": tex_comment,
        "md_code": markdown_code,
        "breakable": lambda name: Markup("<wbr>").join(map(Markup.escape, re.split("(?<=[_ ])", str(name)))),
        "measured": lambda found: measured(found, number),
        "measured_share": lambda found: measured(found, percent),
        "span": lambda pair: f"[{percent(pair[0])}, {percent(pair[1])}]",
    }
    return environment


def _interval_below(found: Measured | None, show: Callable[[float | None], str]) -> Markup:
    """As `over_seeds`, one under the other: ten columns of both side by side are wider than a page."""
    value, *interval = mean_and_interval(found, show)
    return Markup.escape(value) + Markup("").join(
        Markup('<br><span class="mut">{}</span>').format(each) for each in interval
    )


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """CSV of the scalar columns; an interval as two of them, and run ids as one."""
    rows = [_spread_out(row) for row in rows]
    several = {key for row in rows for key, value in row.items() if isinstance(value, list | tuple | dict)}
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in several]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: csv_cell(row.get(key)) for key in columns})
    return buffer.getvalue()


def _spread_out(row: dict[str, Any]) -> dict[str, Any]:
    found = dict(row)
    if "interval" in row:
        low, high = row["interval"] or (None, None)
        found = {**found, "low": low, "high": high}
    if "run_ids" in row:
        found["runs"] = " ".join(row["run_ids"])
    return found
