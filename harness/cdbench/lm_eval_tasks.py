"""The tasks as lm-evaluation-harness sees them: one YAML a task, its held-out split from the same code as ours.

lm-eval is the public interface and the independent second opinion. Both scoring rules are filters on one generation.
"""

from pathlib import Path

from cdbench.config import DataConfig
from cdbench.data import make_splits
from cdbench.discover import find, make_task
from cdbench.files import write_atomic
from cdbench.predictions import ANSWER, NO_ANSWER, STRICT, WORKED_TOKENS
from cdbench.seeds import digest

PREFIX = "cdbench_"

_YAML = """\
# Written by `cdbench tasks-path`; do not edit. Greedy continuation of the prompt, scored by two rules.
task: {name}
tag: cdbench
custom_dataset: !function splits.heldout
dataset_kwargs: {{task: {task}, seed: {seed}, train: {train}, validation: {validation}, test: {test}, split: {split}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
generation_kwargs: {{until: [], do_sample: false, max_gen_toks: {tokens}}}
filter_list:
  - name: answer
    filter: [{{function: regex, regex_pattern: '{answer}', fallback: "{none}"}}, {{function: take_first}}]
  - name: strict
    filter: [{{function: regex, regex_pattern: '{strict}', fallback: "{none}"}}, {{function: take_first}}]
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
num_fewshot: 0
metadata: {{version: 1.0}}
"""

_SPLITS = """\
# Written by `cdbench tasks-path`; do not edit.
from cdbench.lm_eval_tasks import heldout  # noqa: F401
"""


def heldout(task: str, **kwargs: object) -> object:
    """The held-out split of a task as lm-eval wants it; lm-eval passes more keywords than ours, they are ignored."""
    from datasets import Dataset, DatasetDict

    config = DataConfig.model_validate({key: kwargs[key] for key in ("seed", "train", "validation", "test", "split")})
    splits = make_splits(make_task(task), task, config)
    rows = [{"prompt": example.prompt, "answer": example.answer} for example in splits.test]
    return DatasetDict({"test": Dataset.from_list(rows)})


def tasks_folder(config: DataConfig, store: Path) -> Path:
    """The folder in the store with the tasks of these splits, written if it is not there."""
    folder = store / "lm_eval" / digest(config.model_dump(mode="json"))
    write_tasks(folder, config)
    return folder


def write_tasks(folder: Path, config: DataConfig) -> list[str]:
    """Writes one YAML per discovered task; returns the names of the lm-eval tasks."""
    names = []
    for task in find("tasks"):
        name = PREFIX + task
        text = _YAML.format(
            name=name,
            task=task,
            **config.model_dump(exclude={"length_shift"}),
            tokens=WORKED_TOKENS,
            answer=ANSWER,
            strict=STRICT,
            none=NO_ANSWER,
        )
        write_atomic(folder / f"{name}.yaml", text)
        names.append(name)
    write_atomic(folder / "splits.py", _SPLITS)
    return names
