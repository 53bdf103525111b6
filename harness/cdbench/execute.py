"""One spec, one step, in this process. A runner only decides where the steps execute.

    python -m cdbench.execute model-teacher FOLDER STORE [OWN]     train or find the teacher
    python -m cdbench.execute model-student FOLDER STORE [OWN]     train or find the student
    python -m cdbench.execute circuits      FOLDER STORE [OWN]     splits, ablation impacts, pairing
    python -m cdbench.execute signals       FOLDER STORE [OWN]     those that FOLDER/wanted.json names
    python -m cdbench.execute train         FOLDER STORE [OWN]     the method; training split only
    python -m cdbench.execute evaluate      FOLDER STORE [OWN]     the sealed evaluator; no plug-in is imported

FOLDER holds spec.json. A step leaves its files there, `progress-STEP.json` while it works, and `failure-STEP.json` when it fails.
Where STORE cannot be written, new artefacts go to OWN.
"""

import dataclasses
import io
import itertools
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from cdbench import data, models
from cdbench.api import Outcome, Source
from cdbench.config import TEACHER, RunSpec
from cdbench.discover import make_method
from cdbench.errors import CdbenchError, EnvironmentLacks, RunFailed
from cdbench.evaluate import (
    Refused,
    compare_masks,
    compare_representations,
    load_masks,
    load_student,
    predict,
    require_own,
    summarise_masks,
)
from cdbench.files import explained, read_json, sha256, write_atomic, write_json
from cdbench.judge import NotJudged, changed, judge_circuit, perplexity
from cdbench.models import Checkpoint, Role, prepare
from cdbench.predictions import Prediction, count, dump_predictions
from cdbench.provenance import environment
from cdbench.record import (
    GPUS,
    MOST_WANTED,
    PREPARED,
    WANTED,
    MaskAgreement,
    MaskSummary,
    Metrics,
    Wanted,
    failure_file,
    progress_file,
)
from cdbench.signals import SignalStore, last_prompt_mlp, require_samples, signals_of
from cdbench.store import Store, content_hash, manifest_files
from cdbench.tokens import Encoded, encode, prompt_ids
from cdbench.train import History, TrainingProblem
from cdbench.workspace import Workspace

MAX_EXTRAS = 4 << 20


class Progress:
    """Tells the runner how far a step is: a small file, replaced at most twice a second."""

    def __init__(self, folder: Path, step: str) -> None:
        self._path, self._step, self._last = folder / progress_file(step), step, 0.0
        self._begun = time.time()

    def __call__(self, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if now - self._last >= 0.5 or done == total:
            self._last = now
            scratch = self._path.with_suffix(".partial")
            value = {"step": self._step, "done": done, "total": total, "note": note, "begun": self._begun}
            scratch.write_text(json.dumps(value))
            scratch.replace(self._path)


def _workspace(folder: Path, store: Store, step: str, *, build: bool = True) -> tuple[RunSpec, Workspace, Progress]:
    spec = RunSpec.model_validate(read_json(folder / "spec.json", "spec"))
    progress = Progress(folder, step)
    return spec, Workspace(spec.profile, spec.task, store, progress, build), progress


def run_model(folder: Path, store: Store, role: Role) -> None:
    """Makes one model of the pair."""
    _, workspace, _ = _workspace(folder, store, f"model-{role}")
    workspace.checkpoint(role)


def run_circuits(folder: Path, store: Store) -> None:
    """Makes splits, impacts and pairing, and checks that the tokenizers agree."""
    _, workspace, progress = _workspace(folder, store, "circuits")
    progress(0, 1, "")
    _ = workspace.heldout_data, workspace.circuits, workspace.components_file("attribution")
    write_json(folder / PREPARED, {"artefacts": store.opened()})
    progress(1, 1, "")


def run_signals(folder: Path, store: Store) -> None:
    """Makes signals that trainings lacked: what a method computed itself is not for others to read."""
    spec, workspace, progress = _workspace(folder, store, "signals")
    progress(0, 1, "")
    stores = signal_stores(spec, workspace, encode(workspace.tokenizer, workspace.train_examples))
    order = Wanted.model_validate(read_json(folder / WANTED, "list of signals"))
    by_source = sorted(order.signals, key=lambda signal: signal.source)
    for source, of_source in itertools.groupby(by_source, lambda signal: signal.source):
        stores[source].get([(signal.site, signal.position) for signal in of_source])
    for name in order.artefacts:
        workspace.make(name)
    progress(1, 1, "")


def run_train(folder: Path, store: Store) -> None:
    """The method: training split in, weights and masks out."""
    began = time.perf_counter()
    spec, workspace, progress = _workspace(folder, store, "train")
    method = make_method(spec.method, spec.params)
    problem = training_problem(folder, spec, workspace, progress)
    try:
        outcome = method.run(problem)
    finally:
        problem.history.flush()  # a run that fails shows how it went until then
    if not isinstance(outcome, Outcome):
        raise RunFailed(f"method '{spec.method}' returned {type(outcome).__name__}, expected an Outcome")
    with explained(folder, "the run"):
        if outcome.weights is not None:
            save_file(
                {name: value.contiguous() for name, value in outcome.weights.items()}, folder / "student.safetensors"
            )
        if outcome.masks:
            save_file({name: value.contiguous() for name, value in outcome.masks.items()}, folder / "masks.safetensors")
    params = _jsonable(dataclasses.asdict(cast(Any, method)))
    extras = json.dumps(dict(outcome.extras), allow_nan=False)
    if len(extras) > MAX_EXTRAS:
        raise RunFailed(f"extras of {len(extras)} bytes; a method may return at most {MAX_EXTRAS}")
    result = {
        "params": params,
        "extras": json.loads(extras),
        # What the first run of a study makes for all of them is not its own cost.
        "cost": _cost("train", began + store.building_seconds) | {"steps": problem.steps_done},
        "environment": environment(),
        "inputs": workspace.inputs(),
        "notes": [*problem.notes, *_unkept(problem.heaviest, params)],
        "lacked": _made(problem.signal_stores) if store.own != store.root else [],
        "lacked_artefacts": workspace.made_here(),
        "files": {
            name: sha256(folder / name)
            for name in ("student.safetensors", "masks.safetensors")
            if (folder / name).exists()
        },
    }
    write_json(folder / "outcome.json", result, "the run")
    (folder / "checkpoint.pt").unlink(missing_ok=True)


def signal_stores(spec: RunSpec, workspace: Workspace, split: Encoded) -> dict[Source, SignalStore]:
    """The signals of each frozen model on the training split."""
    device = spec.profile.device
    content = content_hash(workspace.training_data)
    teacher, base = workspace.teacher, workspace.student

    def signals(name: str, checkpoint: Checkpoint, load: Callable[[], LlamaForCausalLM]) -> SignalStore:
        identity = {"model": checkpoint.content, "variant": name, "split": content, "device": device}
        return SignalStore(workspace.store, identity, load, split, spec.profile.signal_dtype)

    return {
        "teacher": signals("trained", teacher, lambda: teacher.model(device)),
        "untrained_teacher": signals("untrained", teacher, lambda: models.untrained_like(teacher, device)),
        "student": signals("trained", base, lambda: base.model(device)),
    }


def _made(stores: Mapping[Source, SignalStore]) -> list[dict[str, str]]:
    made = [
        {"source": source, "site": site, "position": position}
        for source, each in stores.items()
        for site, position in each.made
    ]
    return made[:MOST_WANTED]  # what is left out, the next training tells


def training_problem(folder: Path, spec: RunSpec, workspace: Workspace, progress: Progress) -> TrainingProblem:
    """The problem as a method sees it."""
    device = spec.profile.device
    student = workspace.student.model(device)
    split = encode(workspace.tokenizer, workspace.train_examples)
    return TrainingProblem(
        run_id=spec.run_id,
        student=student,
        tokenizer=workspace.tokenizer,
        train=workspace.train_examples,
        validation=workspace.validation_examples,
        seed=spec.seed,
        student_layers=workspace.student.layers,
        teacher_layers=workspace.teacher.layers,
        layer_pairs=workspace.pairs,
        ranked=workspace.components,
        worked_out=lambda: workspace.solutions,
        training=spec.profile.training,
        encoded_train=split,
        encoded_validation=encode(workspace.tokenizer, workspace.validation_examples),
        signal_stores=signal_stores(spec, workspace, split),
        history=History(folder / "history.jsonl"),
        checkpoint=folder / "checkpoint.pt",
        progress=progress,
    )


def run_evaluate(folder: Path, store: Store) -> None:
    """The sealed evaluator: held-out splits, exported weights, nothing else."""
    began = time.perf_counter()
    spec, workspace, progress = _workspace(folder, store, "evaluate", build=False)
    progress(0, 1, "")
    metrics, predictions = evaluate_run(folder, spec, workspace)
    write_atomic(folder / "predictions.jsonl", dump_predictions(predictions), "the run")
    result = {
        "metrics": metrics.model_dump(mode="json"),
        "cost": _cost("evaluate", began),
        "environment": environment(),
        "inputs": workspace.inputs() | {"heldout": content_hash(workspace.heldout_data)},
    }
    write_json(folder / "metrics.json", result, "the run")


def evaluate_run(folder: Path, spec: RunSpec, workspace: Workspace) -> tuple[Metrics, dict[str, list[Prediction]]]:
    """Metrics and predictions of the weights in a run's folder; touches nothing there."""
    device, batch = spec.profile.device, spec.profile.evaluation_batch
    tokenizer = workspace.tokenizer
    reference = spec.method == TEACHER
    model = (workspace.teacher if reference else workspace.student).model(device)
    handed_in = not reference and (folder / "student.safetensors").exists()
    if handed_in:
        load_student(model, folder / "student.safetensors")
    splits = {
        Path(name).stem: data.read_examples(workspace.heldout_data / name)
        for name in sorted(manifest_files(workspace.heldout_data))
    }
    test = encode(tokenizer, splits["test"])
    if handed_in and workspace.student.content != workspace.teacher.content and workspace.same_architecture:
        require_own(model, workspace.student.model(device), workspace.teacher.model(device), test)
    predictions = {name: predict(model, tokenizer, examples, batch) for name, examples in splits.items()}
    cka = None
    if not reference:
        require_samples(test, "the held-out split")
        sites = [[last_prompt_mlp(i) for i in range(c.layers)] for c in (workspace.student, workspace.teacher)]
        split = content_hash(workspace.heldout_data)
        identity = {"model": workspace.teacher.content, "variant": "trained", "split": split, "device": device}
        load = lambda: workspace.teacher.model(device)  # noqa: E731
        teacher = SignalStore(workspace.store, identity, load, test, "float32", "heldout-signals")
        own = signals_of(model, test, sites[0])
        cka = compare_representations([own[site] for site in sites[0]], teacher.get(sites[1]), workspace.pairs)
    touched = (
        (0, sum(p.numel() for p in model.parameters()))
        if reference
        else changed(model, workspace.student.model(device))
    )
    masks, agreement = _examine_masks(folder / "masks.safetensors", workspace)
    try:
        circuit, not_judged = judge_circuit(model, workspace, splits["test"], reference=reference), ""
    except NotJudged as reason:
        circuit, not_judged = None, str(reason)
    first = splits["test"][0].prompt
    metrics = Metrics(
        **count(predictions),
        cka=cka,
        masks=masks,
        mask_agreement=agreement,
        circuit=circuit,
        circuit_not_judged=not_judged,
        perplexity={name: perplexity(model, encode(tokenizer, examples)) for name, examples in splits.items()},
        parameters_changed=touched[0],
        parameters=touched[1],
        first_prompt=first,
        first_prompt_ids=prompt_ids(tokenizer, first),
    )
    return metrics, predictions


def _examine_masks(file: Path, workspace: Workspace) -> tuple[dict[str, MaskSummary], MaskAgreement | None]:
    if not file.exists():
        return {}, None
    models = {"student": workspace.student, "teacher": workspace.teacher}
    masks = load_masks(file, {name: model.neurons for name, model in models.items()})
    found = {name: summarise_masks(mask, models[name].layers) for name, mask in masks.items()}
    agreement = None
    if masks.keys() == models.keys():
        layers = (workspace.student.layers, workspace.teacher.layers)
        agreement = compare_masks(masks["student"], masks["teacher"], layers)
    return found, agreement


def _cost(step: str, began: float) -> dict[str, float]:
    return {
        f"{step}_seconds": round(time.perf_counter() - began, 3),
        f"{step}_peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def _unkept(heaviest: Mapping[str, float], params: Mapping[str, Any]) -> list[str]:
    """Terms that do not weigh what the method's hyperparameters say of its alignment; those of a control say nothing."""
    stated = params.get("alignment_weight")
    return [
        f"term '{name}' weighed nothing on any step, and alignment_weight is {stated}"
        for name, most in heaviest.items()
        if stated and most == 0
    ]


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False, default=str))


_STEPS: dict[str, Callable[[Path, Store], None]] = {
    "model-teacher": lambda folder, store: run_model(folder, store, "teacher"),
    "model-student": lambda folder, store: run_model(folder, store, "student"),
    "circuits": run_circuits,
    "signals": run_signals,
    "train": run_train,
    "evaluate": run_evaluate,
}


def main(argv: list[str]) -> int:
    """Runs one step; whatever happens is told in `failure-STEP.json`, and an unforeseen error also in full on stderr."""
    step, folder, store = argv[0], Path(argv[1]), Store(*map(Path, argv[2:4]))
    (folder / failure_file(step)).unlink(missing_ok=True)
    if isinstance(sys.stdout, io.TextIOWrapper):  # somebody may be watching
        sys.stdout.reconfigure(line_buffering=True)
    try:
        spec = RunSpec.model_validate(read_json(folder / "spec.json", "spec"))
        prepare(spec.profile)
        if spec.profile.device == "cuda":
            _require_gpus()
        _STEPS[step](folder, store)
    except Exception as error:
        known = isinstance(error, CdbenchError)
        if not known:
            traceback.print_exc()
        memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        status = "refused" if isinstance(error, Refused) else "oom" if memory else "failed"
        if isinstance(error, EnvironmentLacks):
            status = "infra"
        text = str(error) if known else f"{type(error).__name__}: {error}"
        code = error.exit_code if isinstance(error, CdbenchError) else 1
        write_json(folder / failure_file(step), {"status": status, "error": text, "step": step, "exit_code": code})
        return code
    return 0


def _require_gpus() -> None:
    """Container engines have started containers without the GPUs that were asked for, and said nothing."""
    wanted = os.environ.get(GPUS)
    if wanted is not None and torch.cuda.device_count() != int(wanted):
        raise EnvironmentLacks(f"{wanted} GPUs were asked for, {torch.cuda.device_count()} are visible")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
