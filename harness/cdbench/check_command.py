"""`cdbench check`: the conformance batteries on the command line."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cdbench.errors import AnswerBad, UserError

if TYPE_CHECKING:
    from cdbench.similarity.conformance.battery import Finding, Report


@click.group()
def check() -> None:
    """Test an implementation against what must hold: ours, or yours in your CI.

    \b
    cdbench check cka --impl mypkg.metrics:linear_cka
    """


@check.command("cka")
@click.option(
    "--impl", metavar="MODULE:NAME", help="Yours: a function (x, y), or a class with update(x, y) and compute()."
)
@click.option(
    "--estimator",
    type=click.Choice(["auto", "biased", "debiased", "both"]),
    default="auto",
    show_default=True,
    help="What yours claims to be; auto: both if it has a parameter 'debiased', else biased.",
)
@click.option(
    "--arrays", type=click.Choice(["torch", "numpy"]), default="torch", show_default=True, help="What yours takes."
)
@click.option("--dtype", type=click.Choice(["float32", "float64"]), help="Yours is for this type alone.")
@click.option("--no-gradient", is_flag=True, help="Yours is for reports only: do not ask for a gradient.")
@click.option("--only", multiple=True, metavar="LAW", help="Only this law; may be repeated.")
@click.option("--skip", multiple=True, metavar="LAW", help="Not this law; may be repeated, and is counted.")
@click.option("--examples", type=click.IntRange(1), default=25, show_default=True, help="Inputs drawn for each test.")
@click.option("--list", "list_laws", is_flag=True, help="List the laws and stop.")
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
@click.option("--junit", type=click.Path(path_type=Path, dir_okay=False), help="Also write a JUnit XML file.")
def cka(**options: Any) -> None:
    """Test a CKA: laws, golden values, and every reference library found. Exit code 3 when a law is broken.

    Without --impl it tests ours. A law that breaks is shown with the smallest counterexample and what usually causes it.

    \b
    cdbench check cka
    cdbench check cka --impl mypkg.metrics:linear_cka
    cdbench check cka --impl mypkg.metrics:cka --estimator debiased --arrays numpy --junit cka.xml
    cdbench check cka --impl mypkg.metrics:StreamCKA --skip extremes
    """
    import torch

    from cdbench.similarity.conformance import battery, output
    from cdbench.similarity.conformance.laws import LAWS
    from cdbench.similarity.conformance.subject import load, ours

    if options["list_laws"]:
        for law in LAWS:
            click.echo(f"{law.name:<24} {law.statement}")
        return
    torch.set_num_threads(1)  # small tensors: two threads are slower than one
    asked = battery.chosen(options["only"], options["skip"], options["examples"], options["dtype"] or "")
    place = options["impl"]
    if options["junit"]:
        # What cannot be written is known before the laws are tested.
        output.write_unfinished_junit(place or "cdbench.similarity", options["junit"])
    with _stdout_kept():
        subjects = (
            [load(place, options["estimator"], options["arrays"], not options["no_gradient"])] if place else ours()
        )
    reports = []
    for subject in subjects:
        with _stdout_kept():
            report = battery.examine(subject, asked, _progress(subject.name))
        reports.append(report)
        for line in [] if options["as_json"] else output.lines(report):
            click.echo(line)
    if options["as_json"]:
        click.echo(output.dumps(reports))
    if options["junit"]:
        output.write_junit(reports, options["junit"])
    _judge(reports)


@contextlib.contextmanager
def _stdout_kept() -> Iterator[None]:
    """What an implementation prints, in Python or below it, goes to stderr: it must not spoil --json."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _progress(name: str) -> Callable[["Finding"], None]:
    """Shows the law that was tested last, on a terminal only."""
    shown = sys.stderr.isatty()

    def tell(finding: "Finding") -> None:
        if shown:
            text = f"{name}: {finding.law} ({finding.estimator}, {finding.dtype})"
            click.echo(f"\r\033[K{text}\r", nl=False, err=True)

    return tell


def _judge(reports: Sequence["Report"]) -> None:
    if sys.stderr.isatty():
        click.echo("\r\033[K", nl=False, err=True)
    for report in reports:
        broken = list(dict.fromkeys(f.law for f in report.findings if f.verdict == "broken"))
        if broken:
            raise AnswerBad(
                f"{report.subject} breaks {len(broken)} law{'s' if len(broken) > 1 else ''}: {', '.join(broken)}"
            )
        if not report.holds:
            raise UserError(f"{report.subject}: nothing was tested; every law asked for is for another kind")
