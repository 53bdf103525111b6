"""A report on the terminal, as JSON, and as JUnit XML."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click

from cdbench import __version__
from cdbench.errors import UserError
from cdbench.files import printable
from cdbench.similarity.conformance.battery import Finding, Report
from cdbench.similarity.conformance.causes import Cause

_MARKS = {"held": ("held   ", "green"), "broken": ("BROKEN ", "red"), "not tested": ("skipped", "yellow")}


def lines(report: Report) -> list[str]:
    """The report for a person: a line a law, the counterexamples, the likely causes."""
    claims = dict.fromkeys(f.estimator for f in report.findings if f.verdict != "not tested")
    text = [f"{click.style(report.subject, bold=True)}, tested as {' and '.join(claims) or 'nothing'}"]
    by_law: dict[str, list[Finding]] = {}
    for finding in report.findings:
        by_law.setdefault(finding.law, []).append(finding)
    shown: dict[str, str] = {}
    for name, findings in by_law.items():
        text += _law_lines(name, findings, shown)
    counts = f"{report.count('held')} held, {report.count('broken')} broken, {report.count('not tested')} not tested"
    text.append(
        f"  {len(by_law)} law{'s' * (len(by_law) > 1)} in {len(report.findings)} tests (by estimator and type): {counts}"
    )
    for diagnosis in report.diagnoses:
        lead = "its values are those of a known mistake" if diagnosis.recognised else "what usually causes this"
        lead = "before anything else" if Cause.NO_NUMBER in diagnosis.causes else lead
        text.append(f"  {diagnosis.estimator}: {lead}:")
        text += [f"    - {cause.value}" for cause in diagnosis.causes[:3]]
    if {finding.law for finding in report.findings if finding.verdict == "broken"} == {"extremes"}:
        text.append("  Only input of extreme size breaks it; if that is accepted: --skip extremes.")
    return text


def _law_lines(name: str, findings: Sequence[Finding], shown: dict[str, str]) -> list[str]:
    broken = [finding for finding in findings if finding.verdict == "broken"]
    skipped = [finding for finding in findings if finding.verdict == "not tested"]
    verdict = "broken" if broken else "not tested" if len(skipped) == len(findings) else "held"
    mark, colour = _MARKS[verdict]
    text = [f"  {click.style(mark, fg=colour)} {name:<24} {findings[0].statement}"]
    if verdict == "not tested":
        text.append(f"            {skipped[0].seen}")
    for finding in _first_of_each(broken):
        text.append(f"            {finding.estimator}, {finding.dtype}: {finding.seen}")
        if finding.counterexample:
            # The same smallest input breaks many laws: its numbers stand there once.
            given = shown.setdefault(finding.counterexample, name)
            same = finding.counterexample.split(": x = ")[0] + f", as under {given}"
            label = "on" if finding.law.startswith("agrees") else "smallest"
            text.append(f"            {label}: {finding.counterexample if given == name else same}")
    return text


def _first_of_each(broken: Sequence[Finding]) -> list[Finding]:
    """One finding an estimator: the other types say the same."""
    return list({finding.estimator: finding for finding in reversed(broken)}.values())[::-1]


def as_json(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """Everything, for programs."""
    return [
        {
            "subject": report.subject,
            "holds": report.holds,
            "cdbench": __version__,
            "diagnoses": [
                {
                    "estimator": diagnosis.estimator,
                    "recognised": diagnosis.recognised,
                    "causes": [{"cause": cause.name.lower(), "text": cause.value} for cause in diagnosis.causes],
                }
                for diagnosis in report.diagnoses
            ],
            "findings": [
                {
                    "law": finding.law,
                    "statement": finding.statement,
                    "estimator": finding.estimator,
                    "dtype": finding.dtype,
                    "verdict": finding.verdict,
                    "seen": finding.seen,
                    "counterexample": finding.counterexample,
                    "causes": [cause.name.lower() for cause in finding.causes],
                }
                for finding in report.findings
            ],
        }
        for report in reports
    ]


def write_junit(reports: Sequence[Report], path: Path) -> None:
    """A JUnit file: a suite an implementation, a case a law, estimator and type.

    Raises:
        UserError: the file cannot be written.
    """
    root = ElementTree.Element("testsuites")
    for report in reports:
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=f"cka {report.subject}",
            tests=str(len(report.findings)),
            failures=str(report.count("broken")),
            skipped=str(report.count("not tested")),
            errors="0",
        )
        for finding in report.findings:
            name = f"{finding.law} [{finding.estimator}, {finding.dtype}]"
            case = ElementTree.SubElement(suite, "testcase", classname=report.subject, name=name)
            if finding.verdict == "broken":
                body = [finding.statement, finding.seen, finding.counterexample, *(c.value for c in finding.causes)]
                failure = ElementTree.SubElement(case, "failure", message=printable(finding.seen, len(finding.seen)))
                text = "\n".join(line for line in body if line)
                failure.text = printable(text, len(text))
            elif finding.verdict == "not tested":
                ElementTree.SubElement(case, "skipped", message=printable(finding.seen, len(finding.seen)))
    _write(root, path)


def write_unfinished_junit(subject: str, path: Path) -> None:
    """What stands there until all laws were tested: of a battery that is killed or dies, an error and no empty file.

    Raises:
        UserError: the file cannot be written.
    """
    root = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(
        root, "testsuite", name=f"cka {subject}", tests="1", failures="0", skipped="0", errors="1"
    )
    case = ElementTree.SubElement(suite, "testcase", classname=subject, name="all laws")
    ElementTree.SubElement(case, "error", message="the battery did not come to its end")
    _write(root, path)


def _write(root: ElementTree.Element, path: Path) -> None:
    ElementTree.indent(root)
    try:
        ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
    except OSError as error:
        raise UserError(f"--junit {path}: cannot write it: {error.strerror}") from None


def dumps(reports: Sequence[Report]) -> str:
    """`as_json` as text."""
    return json.dumps(as_json(reports), indent=1, ensure_ascii=False)
