"""`cdbench test`: the contract of a plug-in, held against somebody's file, in sentences that say what to do.

What a method computes is its own affair. That it can be trusted is not: it is one class that the harness can build, its run is
accepted by the sealed evaluator, and the same spec gives the same bytes.
"""

import ast
import contextlib
import dataclasses
import random
import re
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cdbench import discover, plan
from cdbench.config import RunSpec, build_profile
from cdbench.data import check, make_splits
from cdbench.discover import Kind
from cdbench.errors import CdbenchError, UserError
from cdbench.files import printable
from cdbench.plan import Places
from cdbench.record import Record
from cdbench.runners import Runner
from cdbench.session import REPEATABLE, crash_place, run_specs

Verdict = Literal["ok", "note", "FAIL"]
_TASK = "addition_2digit"
_DRAWS = 300
_DIFFERENT = 100
_SECONDS = 60


@dataclass(frozen=True)
class Finding:
    """One demand of the contract. `advice` says what to do where it is not met."""

    name: str
    verdict: Verdict
    said: str
    advice: str = ""


class Unmet(Exception):
    """A demand that is not met; the tests after it would mean nothing."""

    def __init__(self, said: str, advice: str) -> None:
        super().__init__(said)
        self.advice = advice


Tell = Callable[[Finding], None]


def kind_of(file: Path) -> Kind:
    """Whether a file holds a task or a method, read without importing it.

    Raises:
        UserError: no such file.
    """
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise UserError(f"{file} {what}; give the path of a file with a method or a task in it")
    with contextlib.suppress(SyntaxError, ValueError, RecursionError):
        tree = ast.parse(file.read_text(errors="replace"))
        imported = (
            node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "cdbench.api"
        )
        names = {each.asname or each.name for node in imported for each in node.names if each.name == "Task"} | {
            "api.Task",
            "cdbench.api.Task",
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and names & {ast.unparse(base) for base in node.bases}:
                return "tasks"
    return "methods"


def examine(file: Path, where: Places, runner: Runner, profile: str, tell: Tell) -> None:
    """Holds a plug-in file against its contract, demand by demand; stops at one that the others need."""
    kind = kind_of(file)
    if kind == "tasks" and runner.isolated:
        raise UserError(
            f"{file} is a task: it draws where cdbench itself runs, so read it, then test it with --runner local"
        )
    with tempfile.TemporaryDirectory(prefix="cdbench-test-") as name:
        own = Places(Path(name) / "runs", where.store)
        try:
            stem = _file(file, own, kind, tell)
            if kind == "tasks":
                _task(stem, tell)
            else:
                _method(stem, own, runner, profile, tell)
        except Unmet as unmet:
            # What was imported is a copy; what is to be mended is the user's file.
            last = str(unmet).replace(str(own.plugins / kind / file.name), str(file))
            tell(Finding(last.split(":", 1)[0], "FAIL", last.split(":", 1)[1].strip(), unmet.advice))


@contextlib.contextmanager
def _demand(name: str, advice: str) -> Iterator[None]:
    """Turns what goes wrong inside into an unmet demand of that name."""
    try:
        yield
    except CdbenchError as error:
        better = next((text for pattern, text in _RATHER.items() if re.search(pattern, str(error))), advice)
        raise Unmet(f"{name}: {error}", better) from None
    except (Exception, SystemExit) as error:  # a plug-in that exits must not end the test of it
        raise Unmet(f"{name}: {type(error).__name__}: {printable(str(error), 300)}", advice) from error


_RATHER = {
    r"cannot be imported: ModuleNotFoundError": "Install that package where cdbench is installed; in a container there are only "
    "the packages of the lock (CONTRIBUTING.md).",
    r"cannot be imported": "Mend what is said; `python FILE` shows the whole traceback.",
    r", line \d+: (?!imports )": "Mend that line: the file is not Python yet.",
}
"""Advice on what is wrong with any Python file, in the place of advice on the contract."""


def _file(file: Path, own: Places, kind: Kind, tell: Tell) -> str:
    with _demand(
        "file", "A plug-in is one UTF-8 file that imports cdbench.api and nothing else of cdbench (CONTRIBUTING.md)."
    ):
        stem = plan.bring(file, own, kind)
    tell(Finding("file", "ok", f"{file.name} parses, and imports nothing of cdbench but cdbench.api"))
    if len(summary := discover.summary(file)) > 20:
        tell(Finding("docstring", "ok", f"“{summary}” is what cdbench list will show"))
    else:
        advice = "Begin the file with a docstring whose first line says what it does and where it comes from."
        tell(Finding("docstring", "note", "the file does not say what it is", advice))
    return stem


def _method(name: str, own: Places, runner: Runner, profile: str, tell: Tell) -> None:
    if runner.isolated:
        tell(
            Finding(
                "contract",
                "note",
                "not imported here, where nothing holds it; the run in a container says whether it holds",
            )
        )
    else:
        _class(name, tell)
    first, second, other = (
        RunSpec(profile=build_profile(profile, {}), method=name, task=_TASK, seed=seed) for seed in (0, 0, 1)
    )
    once = _run(first, own, runner)
    metrics = once.metrics
    assert metrics is not None
    trained = f"trained in {once.cost.get('train_seconds', 0):.1f} s"
    tell(
        Finding(
            "run", "ok", f"{trained}, accepted by the sealed evaluator ({profile} profile: its accuracy means nothing)"
        )
    )
    for note in once.notes:
        tell(
            Finding(
                "terms",
                "note",
                note,
                "A term that gives no gradient does nothing; its weight is a number without effect.",
            )
        )
    history = own.run(first.run_id) / "history.jsonl"
    if not history.is_file() or not history.stat().st_size:
        advice = "problem.log(step, loss=...) puts a curve into the report and into MLflow."
        tell(Finding("history", "note", "nothing was logged", advice))
    again = _run(second, Places(own.runs / "again", own.store), runner)
    differs = [file for file in REPEATABLE if once.artefacts.get(file) != again.artefacts.get(file)]
    if differs:
        raise Unmet(
            f"determinism: the same spec gave another {' and '.join(differs)}",
            "Take all randomness from problem.generator('scope') or problem.rng('scope'): not from the clock, not from "
            "torch.randn or torch.randperm without generator=, not from the order of a set or from hash().",
        )
    tell(Finding("determinism", "ok", "the same spec twice gives the same weights and answers, byte for byte"))
    third = _run(other, own, runner)
    if once.artefacts.get("student.safetensors") == third.artefacts.get("student.safetensors"):
        said = "two seeds give the same weights: several seeds of it are one run, and no interval over seeds can be had"
        tell(Finding("seeds", "note", said, "If it draws anything, draw it from problem.generator('scope')."))
    else:
        tell(Finding("seeds", "ok", "another seed is another run"))


def _class(name: str, tell: Tell) -> None:
    advice = "One class that subclasses ObjectiveMethod or Method, decorated @dataclass(frozen=True), each field with a default."
    with _demand("contract", advice):
        method = discover.make_method(name, {})
    fields = ", ".join(f"{f.name}={getattr(method, f.name)!r}" for f in dataclasses.fields(method))  # type: ignore[arg-type]
    tell(Finding("contract", "ok", f"{type(method).__name__}: {fields or 'no hyperparameters'}"))


_ADVICE = {
    "gradient": "A weighted term must reach the student: read it by inputs.student(site), and do not detach it, call .item() on "
    "it, or compute it under torch.no_grad().",
    "architecture": "Return problem.student.state_dict() (or the same names and shapes) as Outcome(weights=...).",
    "shape": "Return problem.student.state_dict() (or the same names and shapes) as Outcome(weights=...).",
    "not finite": "The training diverged: lower the learning rate, or guard the loss against log(0) and division by 0.",
    "masks": "Masks are [classes, layers * neurons] with values between 0 and 1, under the names 'student' and 'teacher'.",
}


_ANY_RUN = (
    "cdbench/api.py says what `problem` and `inputs` hold and what may be returned; methods/cka_cd.py is a whole one."
)


def _run(spec: RunSpec, own: Places, runner: Runner) -> Record:
    done = run_specs([spec], own, runner)[spec.run_id]
    if done.metrics is None:
        advice = next((text for word, text in _ADVICE.items() if word in done.error), _ANY_RUN)
        raise Unmet(f"run: {done.status}: {done.error}{crash_place(own.run(spec.run_id))}", advice)
    return done


def _task(name: str, tell: Tell) -> None:
    with _demand("contract", "One class that subclasses Task and has draw(self, rng) -> Example."), _in_time():
        task = discover.make_task(name)
        shifts = [str(other) for other in task.length_shift]
    tell(Finding("contract", "ok", f"{type(task).__name__}, length shift: {', '.join(shifts) or 'none'}"))
    others = discover.find("tasks")
    if wrong := [other for other in shifts if other not in others or other == name]:
        raise Unmet(
            f"length shift: there is no task {', '.join(wrong)}",
            f"length_shift names other tasks: {', '.join(others)}.",
        )
    advice = "draw returns Example(prompt, answer, operands): texts that are not empty, and of plain arithmetic the right answer."
    with _demand("examples", advice), _in_time():
        examples = [task.draw(random.Random(seed)) for seed in range(_DRAWS)]
        for example in examples:
            check(example, name)
        missing = next((e for e in examples if any(str(o) not in e.prompt for o in e.operands)), None)
        if missing:
            raise UserError(f"the operands {missing.operands} do not stand in the prompt {missing.prompt!r}")
    tell(Finding("examples", "ok", f"such as {examples[0].prompt}{examples[0].answer}"))
    with _demand("determinism", "All randomness comes from rng, which draw is given."), _in_time():
        if examples != [task.draw(random.Random(seed)) for seed in range(_DRAWS)]:
            raise UserError("the same generator drew other examples")
        different = len({example.prompt for example in examples})
        if different < _DIFFERENT:
            raise UserError(
                f"{_DRAWS} generators drew {different} different prompts: draw from rng, and from enough problems"
            )
    tell(
        Finding(
            "determinism",
            "ok",
            f"the same generator draws the same, {_DRAWS} others draw {different} different prompts",
        )
    )
    data = build_profile("tiny", {}).data
    advice = "The tiny profile wants 5,500 different problems, no twins of which are on two sides of a split."
    with _demand("size", advice), _in_time():
        splits = make_splits(task, name, data)
    tell(
        Finding(
            "size",
            "ok",
            f"{len(splits.train)} training and {len(splits.test)} held-out problems, {splits.leaked} leaked",
        )
    )
    _tokens(examples, tell)


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    """Ends what hangs: a task draws in this process."""

    def late(*_: object) -> None:
        raise TimeoutError(f"no end after {_SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _tokens(examples: Sequence[object], tell: Tell) -> None:
    from cdbench.api import Example
    from cdbench.tokens import encode
    from cdbench.zoo import make_tokenizer

    try:
        encode(make_tokenizer(), [e for e in examples if isinstance(e, Example)])
        tell(Finding("tokens", "ok", "the small models' tokenizer reads every prompt and answer"))
    except CdbenchError as error:
        advice = "The paper's pair reads all text: run it with --profile paper."
        tell(Finding("tokens", "note", str(error), advice))
