"""`cdbench ability`: what training did to a student besides the task that it was trained on."""

import json
import os
from pathlib import Path

import click

from cdbench import lm_eval_tasks, plan, record
from cdbench.config import TEACHER
from cdbench.discover import find
from cdbench.errors import UserError
from cdbench.record import Record


@click.command()
@click.argument("run_ids", nargs=-1, required=True, metavar="RUN...")
@click.option("--tasks", help="lm-eval tasks, by commas [our tasks but the run's own].")
@click.option(
    "--include-path", type=click.Path(path_type=Path, exists=True, file_okay=False), help="A folder of lm-eval tasks."
)
@click.option("--limit", type=click.IntRange(min=2), help="At most so many problems of each task.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--runs", help="Folder of records and reports [CDBENCH_RUNS; ./runs].")
@click.option("--store", help="Folder of shared artefacts [CDBENCH_STORE; RUNS/store].")
def ability(  # noqa: PLR0913  (each is a flag of the command line)
    run_ids: tuple[str, ...], tasks: str | None, include_path: Path | None, limit: int | None, *,
    as_json: bool, runs: str | None, store: str | None,
) -> None:  # fmt: skip
    """General ability before and after training: lm-eval tasks on the student before and on the runs' students.

    \b
    cdbench ability 3f2a9c0d1b7e4f60
    cdbench ability 3f2a9c0d1b7e4f60 --tasks hellaswag,arc_easy --limit 500
    cdbench ability $(cdbench list runs --json | jq -r '.runs[] | select(.status == "ok") | .run_id') --json

    Both models answer the same problems; the difference has its 95 % interval over them. It is kept beside the record
    (ability.json), and the study's next report shows it. Data of lm-eval's tasks come from the Hugging Face cache.
    """
    os.environ.setdefault("LMEVAL_LOG_LEVEL", "ERROR")
    from cdbench.ability import Ability, Examiner, Scores, compare, write
    from cdbench.circuit_session import Studied

    where = plan.places(runs, store)
    known: dict[tuple[str, ...], Scores] = {}
    found: list[Ability] = []
    for done in [_with_student(record.read(where.run(run_id))) for run_id in run_ids]:
        profile, wanted = done.spec.profile, tasks.split(",") if tasks else _others(done.spec.task)
        studied = Studied(done.run_id, profile.name, done.spec.task, where, lambda *_: None)
        studied.start()
        folders = [lm_eval_tasks.tasks_folder(profile.data, where.store), *([include_path] if include_path else [])]
        examiner = Examiner(profile, wanted, folders, limit)
        click.echo(f"{done.run_id}  {done.spec.label}", err=as_json)
        if studied.workspace.student.content != done.inputs.get("student"):
            raise UserError(
                f"run {done.run_id} began with another student than this store and this version have; what it could do before "
                f"training cannot be asked any more (commit {done.code.commit[:12]} made it)"
            )
        base = (studied.workspace.student.content, profile.data.model_dump_json(), *wanted)
        if base not in known:
            known[base] = examiner.examine(studied.workspace.student.model(profile.device), studied.tokenizer)
        scores = compare(known[base], examiner.examine(studied.model, studied.tokenizer), examiner.versions)
        found.append(write(where.run(done.run_id), done.run_id, scores))
        for row in scores if not as_json else ():
            click.echo(f"  {row.task:<28} {row.metric} ({row.filter}), {row.n} problems: {row.before:.3f} before, "
                       f"{row.after:.3f} after, {row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]")  # fmt: skip
    if as_json:
        click.echo(json.dumps([each.model_dump(mode="json") for each in found], indent=1))


def _with_student(done: Record) -> Record:
    if done.metrics is None or done.spec.method == TEACHER:
        raise UserError(f"run {done.run_id} ({done.spec.label}, {done.status}) has no student to ask")
    return done


def _others(own: str) -> list[str]:
    return [lm_eval_tasks.PREFIX + task for task in find("tasks") if task != own]
