"""`cdbench test`: runs the contract's tests on a plug-in file."""

import json
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cdbench import plan
from cdbench.errors import AnswerBad

if TYPE_CHECKING:
    from cdbench.plugin_test import Finding


@click.command("test")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--profile", default="smoke", show_default=True, help="Models and budgets that a method is tried with.")
@click.option("--runner", type=click.Choice(["local", "docker"]), default="local", show_default=True,
              envvar="CDBENCH_RUNNER", help="Where a method is tried; docker for one that you have not read.")  # fmt: skip
@click.option("--image", envvar="CDBENCH_IMAGE", help="Image of --runner docker.")
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
@click.option("--store", help="Folder of shared artefacts [CDBENCH_STORE; RUNS/store].")
@click.option("--runs", help="Folder of records and reports [CDBENCH_RUNS; ./runs].")
def test(file: Path, **options: Any) -> None:
    """Test a method or task file against the contract of its kind, before anybody runs it. Exit code 3 where it fails.

    \b
    cdbench test my_method.py
    cdbench test tasks/my_task.py
    cdbench test theirs.py --runner docker --json
    """
    from cdbench.plugin_test import examine
    from cdbench.session import make_runner

    found: list[Finding] = []

    def tell(finding: "Finding") -> None:
        found.append(finding)
        if not options["as_json"]:
            click.echo(f"{finding.verdict:<5} {finding.name:<12} {finding.said}")
            if finding.advice:
                click.echo(f"{'':<18} → {finding.advice}")

    with closing(make_runner(options["runner"], options["image"])) as chosen:
        examine(file, plan.places(options["runs"], options["store"], search=False), chosen, options["profile"], tell)
    failed = [finding for finding in found if finding.verdict == "FAIL"]
    if options["as_json"]:
        click.echo(
            json.dumps({"file": str(file), "holds": not failed, "findings": [asdict(f) for f in found]}, indent=1)
        )
    if failed:
        raise AnswerBad(f"{file} does not keep the contract: {failed[0].name}")
    if not options["as_json"]:
        click.echo(
            f"{file} keeps the contract; next: cdbench {'leaderboard add' if _is_method(file) else 'run finetune --task'} {file}"
        )


def _is_method(file: Path) -> bool:
    from cdbench.plugin_test import kind_of

    return kind_of(file) == "methods"
