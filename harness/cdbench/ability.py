"""General ability before and after: lm-evaluation-harness tasks on the student before training and on a run's student.

The same problems for both, so the difference is paired. It is a view of a run, kept beside its record: lm-eval's own data and
models' caches are outside what a record can seal.
"""

import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from cdbench import lm_eval_tasks
from cdbench.config import Closed, Profile, explain
from cdbench.errors import EnvironmentLacks, UserError, first_line
from cdbench.files import read_json, write_json
from cdbench.inference import mean_interval

if TYPE_CHECKING:  # reports read what was found, and need neither torch nor transformers for it
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

FILE = "ability.json"
_PROBE = "1+1="


class TaskScore(Closed):
    """One metric of one lm-eval task: means before and after training, their difference with its 95 % interval over problems."""

    lm_eval: str
    task: str
    version: str
    metric: str
    filter: str
    n: int
    before: float
    after: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """After minus before."""
        return self.after - self.before


class Ability(Closed):
    """ability.json."""

    run_id: str
    scores: list[TaskScore]


Scores = dict[tuple[str, str, str], dict[int, float]]
"""(task, metric, filter) -> value of each problem."""


class Examiner:
    """lm-eval on models of one profile, on the tasks of these names; `folders` hold task files beside lm-eval's own.

    Raises:
        UserError: no such task.
    """

    def __init__(self, profile: Profile, tasks: Sequence[str], folders: Sequence[Path], limit: int | None) -> None:
        from lm_eval.tasks import TaskManager

        include = [str(folder) for folder in folders]
        self._manager = TaskManager(include_path=include, include_defaults=False)
        if any(task not in self._manager.all_tasks for task in tasks):  # the index of all of them takes long
            self._manager = TaskManager(include_path=include)
        for task in tasks:
            if task not in self._manager.all_tasks:
                own = [name for name in self._manager.all_tasks if name.startswith(lm_eval_tasks.PREFIX)]
                raise UserError(
                    f"lm-eval has no task '{task}'; ours are {', '.join(own)}; for others see `lm_eval ls tasks`, or name a "
                    "folder of task files by --include-path"
                )
        self._tasks, self._limit, self._profile = list(tasks), limit, profile
        self.versions: dict[str, str] = {}

    def examine(self, model: "LlamaForCausalLM", tokenizer: "PreTrainedTokenizerFast") -> Scores:
        """What a model scores, problem by problem.

        Raises:
            EnvironmentLacks: a task's data is not in the local cache.
            UserError: lm-eval reads a prompt as other tokens than we do, or refuses a task.
        """
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import get_task_dict

        from cdbench.tokens import prompt_ids

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # theirs; what is wrong shows in an error or in the scores
            begins = tokenizer.bos_token_id is not None and prompt_ids(tokenizer, _PROBE)[0] == tokenizer.bos_token_id
            judged = HFLM(
                pretrained=model, tokenizer=tokenizer, batch_size=self._profile.evaluation_batch, add_bos_token=begins
            )
            if list(judged.tok_encode(_PROBE)) != prompt_ids(tokenizer, _PROBE):
                raise UserError(f"lm-eval reads {_PROBE!r} as other tokens than cdbench does; scores would not compare")
            try:
                loaded = get_task_dict(self._tasks, self._manager)
            except (OSError, ValueError) as error:  # what the data library says without a network
                said = first_line(error).rstrip(".")
                raise EnvironmentLacks(
                    f"lm-eval cannot load the data of {', '.join(self._tasks)}: {said}. Load it once on a machine "
                    "with a network (it is kept in the Hugging Face cache)"
                ) from None
            del loaded
            try:
                result: dict[str, Any] = lm_eval.simple_evaluate(
                    judged, tasks=self._tasks, task_manager=self._manager, limit=self._limit, bootstrap_iters=0
                )
            except ValueError as error:
                raise UserError(f"lm-eval does not run {', '.join(self._tasks)}: {first_line(error)}") from None
        self.versions = {task: str(version) for task, version in result["versions"].items()}
        return {
            key: values for task, samples in result["samples"].items() for key, values in _values(task, samples).items()
        }


def _values(task: str, samples: Sequence[dict[str, Any]]) -> Scores:
    """The metrics that are one number a problem: what is computed of all problems together has no difference by problem."""
    found: Scores = {}
    for sample in samples:
        for metric in sample["metrics"]:
            if isinstance(sample[metric], int | float):
                key = (task, metric, sample["filter"])
                found.setdefault(key, {})[int(sample["doc_id"])] = float(sample[metric])
    return found


def compare(before: Scores, after: Scores, versions: dict[str, str]) -> list[TaskScore]:
    """Every metric of every task, before and after.

    Raises:
        UserError: the tasks have no metric of single problems, or fewer than two problems.
    """
    rows = []
    for key in before:
        first, second = (np.array([values[i] for i in sorted(values)]) for values in (before[key], after[key]))
        if len(first) < 2:
            raise UserError(f"{key[0]}: one problem says nothing; a --limit of at least 2 is needed")
        low, high = mean_interval((second - first)[None])
        row = dict(zip(("task", "metric", "filter"), key, strict=True)) | {"version": versions.get(key[0], "unknown")}
        means = {"before": float(first.mean()), "after": float(second.mean()), "low": low, "high": high}
        rows.append(TaskScore(lm_eval=metadata.version("lm-eval"), n=len(first), **row, **means))
    if not rows:
        raise UserError("these lm-eval tasks have no metric of single problems; before and after cannot be compared")
    return rows


def write(folder: Path, run_id: str, scores: list[TaskScore]) -> Ability:
    """Keeps the comparison beside the run's record, in place of what was there of the same tasks."""
    before = read(folder)
    new = {score.task for score in scores}
    kept = [score for score in before.scores if score.task not in new] if before else []
    found = Ability(
        run_id=run_id, scores=sorted([*kept, *scores], key=lambda each: (each.task, each.metric, each.filter))
    )
    write_json(folder / FILE, found.model_dump(mode="json"), "the scores")
    return found


def read(folder: Path) -> Ability | None:
    """What `write` wrote into a run's folder; None where general ability was not asked for.

    Raises:
        UserError: the file was cut short or altered.
    """
    if not (folder / FILE).exists():
        return None
    try:
        return Ability.model_validate(read_json(folder / FILE, "scores"))
    except ValidationError as error:
        raise explain(error, str(folder / FILE)) from None
