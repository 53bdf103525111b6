"""The command line: parses, calls one function, prints. The result goes to stdout, everything else to stderr.

Imports here are light, so that `--help` and `list` answer at once; torch, mlflow and matplotlib are imported by what
needs them.
"""

import json
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, NoReturn

import click
from click.core import ParameterSource
from pydantic import ValidationError

from cdbench import __version__, config, discover, plan, record
from cdbench.ability_command import ability
from cdbench.build_command import build
from cdbench.check_command import check
from cdbench.circuit_command import circuit
from cdbench.compare_command import compare
from cdbench.errors import INTERRUPTED, AnswerBad, CdbenchError, RunFailed, UserError
from cdbench.files import one_line, sha256
from cdbench.leaderboard_command import board_json, board_text, boards_with, leaderboard
from cdbench.new_command import new
from cdbench.test_command import test

_EPILOG = "Exit codes: 0 done, 1 a run failed, 2 wrong input, 3 finished but the answer is bad, 4 the environment lacks something, 130 interrupted."  # noqa: E501


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


class _Group(click.Group):
    """Turns our errors into one sentence on stderr and the exit code that they stand for; SIGTERM is a Ctrl-C."""

    def invoke(self, ctx: click.Context) -> Any:
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            return super().invoke(ctx)
        except CdbenchError as error:
            _stop(str(error), error.exit_code)
        except KeyboardInterrupt:
            _stop("interrupted; finished runs are kept, the same command goes on from here", INTERRUPTED)
        except BrokenPipeError:
            sys.stderr.close()  # the reader (head, a pager) has gone; nobody is left to tell
            sys.exit(0)


def _stop(text: str, code: int) -> NoReturn:
    click.echo(f"cdbench: {text}", err=True)
    sys.exit(code)


@click.group(cls=_Group, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cdbench")
def main() -> None:
    """The reproducible benchmark for circuit distillation.

    \b
    cdbench reproduce paper_a            the papers' Table 1 with models trained on the spot
    cdbench run cka_cd --task addition_2digit --seeds 0,1
    cdbench list methods
    cdbench report paper_a
    cdbench check cka --impl mypkg.metrics:linear_cka
    """


main.add_command(ability)
main.add_command(build)
main.add_command(check)
main.add_command(circuit)
main.add_command(compare)
main.add_command(leaderboard)
main.add_command(new)
main.add_command(test)
Command = Callable[..., None]


def _places_options(command: Command) -> Command:
    command = click.option("--store", help="Folder of shared artefacts [CDBENCH_STORE; RUNS/store].")(command)
    return click.option("--runs", help="Folder of records and reports [CDBENCH_RUNS; ./runs].")(command)


def _seeds(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    if value is None:
        return None
    try:
        seeds = [int(word) for word in value.split(",")]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {value!r}: give different whole numbers from 0 on, for example --seeds 0,1,2")
    return seeds


def _gpus(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str]:
    names = value.split(",") if value else []
    if not all(names) or len(set(names)) < len(names):
        raise UserError(f"--gpus {value!r}: give different ids, for example --gpus 0,1")
    return names


def _run_options(command: Command) -> Command:
    options = [
        click.option("--profile", help="Models and budgets: tiny, tiny_lengths, smoke, paper, or a .toml file."),
        click.option(
            "--set",
            "flags",
            multiple=True,
            metavar="KEY=VALUE",
            help="Change a value: training.lr=2e-4, method.alignment_weight=0.05.",
        ),
        click.option("--seeds", callback=_seeds, metavar="0,1,2", help="Seeds to run."),
        click.option(
            "-n", "--dry-run", is_flag=True, help="Show the plan and where each value comes from; run nothing."
        ),
        click.option("--force", is_flag=True, help="Run again what is finished."),
        click.option(
            "--jobs",
            type=click.IntRange(1),
            default=2,
            show_default=True,
            envvar="CDBENCH_JOBS",
            show_envvar=True,
            help="Runs at a time.",
        ),
        click.option(
            "--runner",
            type=click.Choice(["local", "docker", "ray", "slurm"]),
            default="local",
            show_default=True,
            envvar="CDBENCH_RUNNER",
            show_envvar=True,
            help="Plain processes, a container for each step (in which a method is locked in), or a cluster.",
        ),
        click.option(
            "--inside",
            type=click.Choice(["docker", "local"]),
            default="docker",
            show_default=True,
            help="What a step runs in on a cluster's machines.",
        ),
        click.option("--image", envvar="CDBENCH_IMAGE", help="Image for containers [the newest of today's lock]."),
        click.option("--gpus", callback=_gpus, metavar="0,1", help="GPUs of --runner docker, by id; one a run."),
        click.option(
            "--logs/--no-logs",
            default=None,
            help="Show what the steps print, as it comes (it is kept in files anyway) [of a single method in a container: yes].",
        ),
        click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout."),
        click.option(
            "--mlflow",
            "uri",
            envvar="MLFLOW_TRACKING_URI",
            metavar="URI|none",
            help="Tracking server; none: leave MLflow alone, until a sync [RUNS/mlflow.db].",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return _places_options(command)


@main.command("list")
@click.argument("what", type=click.Choice(["tasks", "methods", "profiles", "studies", "runs", "all"]), default="all")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@_places_options
def list_command(what: str, as_json: bool, runs: str | None, store: str | None) -> None:
    """List tasks, methods, profiles, studies and runs; imports no plug-in.

    \b
    cdbench list methods
    cdbench list runs --json
    """
    wanted = ["tasks", "methods", "profiles", "studies"] if what == "all" else [what]
    where = plan.places(runs, store)
    tables = {name: _listing(name, where) for name in wanted}
    if as_json:
        click.echo(json.dumps(tables, indent=1))
        return
    for name, rows in tables.items():
        if what == "all":
            click.echo(click.style(name, bold=True))
        width = max((len(row["name"]) for row in rows), default=0)
        for row in rows:
            click.echo(f"  {row['name']:<{width}}  {one_line(row['summary'])}")
        if not rows:
            click.echo("  none")
    if what == "all" and (count := sum(1 for _ in where.records.glob("*"))):
        click.echo(f"{click.style('runs', bold=True)}\n  {count} under {plan.shortest(where.runs)}: cdbench list runs")


def _began(folder: Path) -> float:
    """When a run was begun: the spec is written first. What has none is last."""
    spec = folder / "spec.json"
    return spec.stat().st_mtime if spec.is_file() else float("inf")


def _label_of(folder: Path) -> str:
    """What a run that has no record would be called."""
    try:
        spec = config.RunSpec.model_validate_json((folder / "spec.json").read_bytes())
    except (OSError, ValidationError):
        return ""
    return f"{spec.profile.name}  {spec.label}"


def _listing(what: str, where: plan.Places) -> list[dict[str, Any]]:
    if what in ("tasks", "methods"):
        found = discover.find("tasks" if what == "tasks" else "methods")
        return [{"name": name, "summary": discover.summary(path)} for name, path in found.items()]
    if what in ("profiles", "studies"):
        tables = config.available("profiles" if what == "profiles" else "studies")
        return [{"name": n, "summary": str(config.read_toml(p).get("description", ""))} for n, p in tables.items()]
    rows: list[dict[str, Any]] = []
    for folder in sorted(where.records.glob("*"), key=_began):
        if not (folder / record.RECORD).exists():
            rows.append(
                {"name": folder.name, "summary": f"{'unfinished':<11} {_label_of(folder)}", "status": "unfinished"}
            )
            continue
        try:
            done = record.read(folder)
        except UserError as error:  # one damaged record must not hide the others
            rows.append({"name": folder.name, "summary": f"BROKEN      {error}", "status": "broken"})
            continue
        result = f"{done.metrics.accuracy.value:.1%}" if done.metrics else done.error
        rows.append(
            {
                "name": folder.name,
                "summary": f"{done.status:<11} {done.spec.profile.name}  {done.spec.label}  {result}",
                "status": done.status,
                "run_id": done.run_id,
                "started": done.started,
                "profile": done.spec.profile.name,
                "method": done.spec.method,
                "task": done.spec.task,
                "seed": done.spec.seed,
                "params": dict(done.spec.params),
                "accuracy": done.metrics.accuracy.value if done.metrics else None,
                "error": done.error,
            }
        )
    return rows


@main.command()
@click.argument("studies", nargs=-1, required=True, metavar="STUDY...")
@click.option("-k", "only", metavar="TEXT", help="Only runs whose label holds TEXT (and the teacher).")
@click.option("--no-report", is_flag=True, help="Write no report at the end.")
@_run_options
def reproduce(studies: tuple[str, ...], **options: Any) -> None:
    """Run studies to their reports. What is finished is not run again; Ctrl-C stops, the same command goes on.

    \b
    cdbench reproduce paper_a
    cdbench reproduce paper_a failed_run --profile smoke
    cdbench reproduce paper_a --set training.lr=2e-4 --seeds 0,1,2,3,4 --dry-run
    cdbench reproduce paper_a -k cka_cd --json
    cdbench reproduce paper_a --runner docker
    RAY_ADDRESS=head:6379 cdbench reproduce paper_a --runner ray --jobs 16
    """
    where = plan.places(options["runs"], options["store"])
    _run_studies([config.load_study(name) for name in studies], where, options)


@main.command()
@click.argument("method")
@click.option("--task", default="addition_2digit", show_default=True)
@_run_options
def run(method: str, task: str, **options: Any) -> None:
    """Run one method on one task (and the teacher beside it). METHOD is a name, or the path of a file with a method in it.

    \b
    cdbench run cka_cd --task addition_2digit
    cdbench run cka_cd --set method.alignment_weight=0.05 --seeds 0,1,2 --profile smoke
    cdbench run theirs.py --runner docker       # somebody else's method, without trusting it
    """
    where = plan.places(options["runs"], options["store"])
    method, task = _brought(method, task, where, options["dry_run"])
    study = plan.single_run_study(method, task, options["profile"] or "tiny", options["seeds"] or [0])
    _run_studies([study], where, options | {"only": None, "no_report": True})


@leaderboard.command()
@click.argument("method")
@click.option("--task", default="addition_2digit", show_default=True)
@_run_options
def add(method: str, task: str, **options: Any) -> None:
    """Run a method with three seeds, judged exactly as the built-in rows are, and show its board. METHOD is a name or a file.

    \b
    cdbench leaderboard add my_method.py
    cdbench leaderboard add theirs.py --runner docker --seeds 0,1,2,3,4
    """
    where = plan.places(options["runs"], options["store"])
    method, task = _brought(method, task, where, options["dry_run"])
    study = plan.single_run_study(method, task, options["profile"] or "tiny", options["seeds"] or [0, 1, 2])
    boards_alone = options["as_json"] and not options["dry_run"]
    without_result: RunFailed | None = None
    try:
        _run_studies([study], where, options | {"only": None, "no_report": False}, show=not boards_alone)
    except RunFailed as error:  # the seeds that came to a result have a row all the same
        without_result = error
    if options["dry_run"]:
        return
    try:
        found = boards_with(where, task, method)
    except UserError as error:
        raise without_result or error from None  # why there is no run to be shown, not that there is none
    if boards_alone:  # each row names its runs
        click.echo(json.dumps([board_json(board, where) for board in found], indent=1))
    for board in [] if boards_alone else found:
        click.echo("\n" + board_text(board))
    if without_result is not None:
        raise without_result


def _brought(method: str, task: str, where: plan.Places, dry_run: bool) -> tuple[str, str]:
    """Names of a method and a task, either of which may have been given as a file."""
    given: dict[discover.Kind, str] = {"methods": method, "tasks": task}
    files = {kind: Path(name) for kind, name in given.items() if name.endswith(".py")}
    if files and dry_run:
        folder = click.get_current_context().with_resource(TemporaryDirectory(prefix="cdbench-plan-"))
        where = plan.copy_of_brought(where, Path(folder))
    names = given | {kind: plan.bring(file, where, kind) for kind, file in files.items()}
    return names["methods"], names["tasks"]


def _run_studies(
    studies: Sequence[config.Study], where: plan.Places, options: dict[str, Any], *, show: bool = True
) -> None:
    from cdbench import session

    _require_containers_where_named(options)
    wanted = {key: options[key] for key in ("profile", "flags", "seeds", "only", "force")}
    runner = session.make_runner(options["runner"], options["image"], options["gpus"], options["inside"])
    wanted["isolated"] = runner.isolated
    plans = [plan.make_plan(study, where, **wanted) for study in studies]
    if options["dry_run"]:
        _show_plans(plans, options["as_json"])
        return
    settings = session.Settings(
        where,
        jobs=options["jobs"],
        force=options["force"],
        report=not options["no_report"],
        uri=options["uri"],
        command=_command(),
        runner=runner,
        # Whoever runs one method in a container wants to see what it says; of a whole study that would be noise.
        logs=runner.isolated and all(len(s.methods) == 1 for s in studies)
        if options["logs"] is None
        else options["logs"],
    )
    # Planned again one by one: a run that two studies share is finished when the second comes to it.
    results = [session.run_study(plan.make_plan(study, where, **wanted), settings) for study in studies]
    if show and options["as_json"]:
        click.echo(json.dumps([result.as_json() for result in results], indent=1))
    elif show:
        for result in results:
            click.echo(result.table())
    failed = [text for result in results for text in result.failures()]
    if failed:
        more = f"\n  and {len(failed) - _FAILURES} more: cdbench list runs" if len(failed) > _FAILURES else ""
        told = "".join(f"\n  {text}" for text in failed[:_FAILURES])
        raise RunFailed(f"{len(failed)} of the runs came to no result:{told}{more}")


_FAILURES = 3
"""Runs without a result that are told in full."""


def _require_containers_where_named(options: dict[str, Any]) -> None:
    """Whoever names an image on the command line expects a container around the method."""
    typed = click.get_current_context().get_parameter_source("image") is ParameterSource.COMMANDLINE
    if options["runner"] == "local" and (typed or options["gpus"]):
        which = "--image" if typed else "--gpus"
        raise UserError(f"{which} is for --runner docker; the local runner starts plain processes")


def _command() -> str:
    """What was typed, for the report: whoever repeats it gets the same study."""
    return shlex.join(["cdbench", *sys.argv[1:]])


def _show_plans(plans: Sequence[plan.Plan], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([plan.plan_json(each) for each in plans], indent=1))
        return
    for each in plans:
        click.echo(f"{each.name} (profile {each.profile}): {each.study.title}")
        for planned in each.runs:
            click.echo(f"  {planned.action:<6} {planned.spec.run_id}  {planned.spec.label}  ({planned.reason})")
        click.echo("values")
        for key, value, source in plan.value_sources(each):
            click.echo(f"  {key:<28} {value!s:<24}  {source}")


@main.command()
@click.argument("study")
@_places_options
def report(study: str, runs: str | None, store: str | None) -> None:
    """Write the report of a study that was run, from its records.

    \b
    cdbench report paper_a
    """
    from cdbench.report.build import write_report

    where = plan.places(runs, store)
    click.echo(write_report(plan.read_study(study, where), where))


@main.command()
@click.argument("run_id")
@click.option("--rerun", is_flag=True, help="Run its spec again, training and all, where it was run: local or docker.")
@click.option("--image", envvar="CDBENCH_IMAGE", help="Image for --rerun of a run that was made in a container.")
@click.option("--gpus", callback=_gpus, metavar="0", help="GPU for --rerun of a run that was made in a container.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@_places_options
def verify(run_id: str, rerun: bool, as_json: bool, **options: Any) -> None:
    """Evaluate a run's weights again and compare every metric with its record; exit code 3 when one differs.

    \b
    cdbench verify 3f2a9c0d1b7e4f60
    cdbench verify 3f2a9c0d1b7e4f60 --rerun     # train again, too: same spec, same machine, same bytes
    """
    from cdbench import session

    where = plan.places(options["runs"], options["store"])
    container = session.require_result(where, run_id).environment.get("container") or {}
    again: list[str] = []
    if rerun:  # first: it makes what the store lacks, a bundle's for one, and the weights are judged with that
        runner = session.make_runner(
            container.get("runner", "local"), options["image"] or container.get("image_id"), options["gpus"]
        )
        again = session.rerun(where, run_id, runner)
    differences = session.verify(where, run_id) + again
    if as_json:
        click.echo(json.dumps({"run_id": run_id, "verified": not differences, "differences": differences}, indent=1))
    for line in [] if as_json else differences:
        click.echo(line)
    if differences:
        raise AnswerBad(f"run {run_id} is not what its record says ({len(differences)} differences)")
    if not as_json:
        too = "; a second run gave the same bytes" if rerun else ""
        click.echo(f"run {run_id}: weights, predictions and metrics are what the record says{too}")


@main.command()
@click.argument("run_id")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@_places_options
def score(run_id: str, as_json: bool, runs: str | None, store: str | None) -> None:
    """Score a run's stored predictions again, without a model; exit code 3 when the record says otherwise.

    \b
    cdbench score 3f2a9c0d1b7e4f60
    """
    from cdbench import scoring

    where = plan.places(runs, store)
    done, counts = scoring.score_again(where.run(run_id))
    if as_json:
        click.echo(json.dumps({"run_id": run_id, **counts.as_json()}, indent=1))
    else:
        click.echo(f"{done.spec.label}")
        click.echo(counts.text())
    if not counts.agrees(done):
        raise AnswerBad(f"the record of {run_id} says other numbers than its predictions")


@main.command()
@click.argument("study")
@click.option("--mlflow", "uri", envvar="MLFLOW_TRACKING_URI", help="Tracking server [RUNS/mlflow.db].")
@_places_options
def sync(study: str, uri: str | None, runs: str | None, store: str | None) -> None:
    """Bring MLflow up to date with a study's records. Any number of times: each point is stored once.

    \b
    cdbench sync paper_a
    cdbench sync paper_a --mlflow http://localhost:5000
    """
    from cdbench import session, tracking

    if uri == session.NO_TRACKING:
        raise UserError(
            "--mlflow none (or MLFLOW_TRACKING_URI=none) leaves MLflow alone; name a server, or nothing for RUNS/mlflow.db"
        )
    where = plan.places(runs, store)
    sent, there = tracking.sync(plan.read_study(study, where), where, uri)
    click.echo(f"{sent} records sent, {there} were there already: {uri or tracking.default_uri(where)}")


@main.command("tasks-path")
@click.option("--profile", default="tiny", show_default=True, help="Whose split the tasks evaluate.")
@click.option("--set", "flags", multiple=True, metavar="KEY=VALUE", help="As for reproduce.")
@_places_options
def tasks_path(profile: str, flags: tuple[str, ...], runs: str | None, store: str | None) -> None:
    """Print a folder for lm-eval's --include_path with every task in it, on the same held-out split as ours.

    \b
    cdbench export RUN_ID student/
    lm_eval run --model hf --model_args pretrained=student --include_path $(cdbench tasks-path) \\
        --tasks cdbench_addition_2digit
    """
    from cdbench.config import build_profile, layered_overrides
    from cdbench.lm_eval_tasks import tasks_folder

    config = build_profile(profile, layered_overrides({}, flags)).data
    click.echo(tasks_folder(config, plan.places(runs, store).store))


@main.command()
@click.argument("study")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="The file [STUDY.crate.zip].")
@click.option("--no-weights", is_flag=True, help="Leave the students' weights out; their sums stay in.")
@click.option("--json", "as_json", is_flag=True, help="What was packed, as JSON.")
@_places_options
def bundle(study: str, output: Path | None, no_weights: bool, as_json: bool, **options: Any) -> None:
    """Pack a study that was run into one file (an RO-Crate) that others can check and repeat without us.

    \b
    cdbench bundle paper_a
    unzip paper_a.crate.zip -d paper_a && cd paper_a && sha256sum --check --quiet SHA256SUMS
    """
    from cdbench.bundle import bundle as pack

    where = plan.places(options["runs"], options["store"])
    target = output or Path(f"{study}.crate.zip")
    names = pack(plan.read_study(study, where), where, target, weights=not no_weights)
    known = sha256(target)
    if as_json:
        click.echo(json.dumps({"study": study, "file": str(target), "sha256": known, "entries": names}, indent=1))
    else:
        click.echo(f"{target}: {len(names)} files, {target.stat().st_size / 1e6:.1f} MB")
        click.echo(f"SHA-256 {known}: whoever gets the file can hold it against this")


@main.command()
@click.argument("run_id")
@click.argument("folder", type=click.Path(path_type=Path))
@_places_options
def export(run_id: str, folder: Path, runs: str | None, store: str | None) -> None:
    """Write a run's student as a Hugging Face folder (config, weights, tokenizer).

    \b
    cdbench export 3f2a9c0d1b7e4f60 student/
    """
    from cdbench import session

    session.export(plan.places(runs, store), run_id, folder)
    click.echo(folder)


@main.command()
@click.option("--profile", help="Also check what this profile needs.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@_places_options
def doctor(profile: str | None, as_json: bool, runs: str | None, store: str | None) -> None:
    """Look at this machine: what works, and what to do about the rest. Exit code 4 when something needed is missing.

    \b
    cdbench doctor
    cdbench doctor --profile paper
    """
    from cdbench.doctor import examine

    findings = examine(plan.places(runs, store), profile)
    if as_json:
        click.echo(json.dumps([finding.as_json() for finding in findings], indent=1))
    else:
        for finding in findings:
            click.echo(f"{finding.mark}  {finding.what:<18} {finding.text}")
    missing = [finding for finding in findings if finding.state == "missing"]
    if missing:
        sys.exit(4)
