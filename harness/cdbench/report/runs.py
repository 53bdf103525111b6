"""The page of one run: what it was, what came out, how its answers fail, what it cost, and what proves it."""

from collections.abc import Mapping, Sequence
from typing import Any

from cdbench.files import printable
from cdbench.plan import flat
from cdbench.record import Record, number_at
from cdbench.report.anatomy import Answers, anatomy, kind_of

_WRONG = 6
_LONGEST = 60


def run_page(record: Record, row: str, answers: Answers, history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Everything of a run that the report shows; the scalar entries are a line of runs.csv."""
    metrics = record.metrics
    found = anatomy([answers]) if answers else None
    return {
        "run_id": record.run_id,
        "label": record.spec.label,
        "status": record.status,
        "error": record.error,
        "accuracy": metrics.accuracy.value if metrics else None,
        "low": metrics.accuracy.low if metrics else None,
        "high": metrics.accuracy.high if metrics else None,
        "train_seconds": record.cost.get("train_seconds"),
        "evaluate_seconds": record.cost.get("evaluate_seconds"),
        "peak_memory_mib": record.cost.get("train_peak_memory_mib"),
        "code_digest": record.code.digest,
        "started": record.started,
        "row": row,
        "shares": _shares(record),
        "numbers": _numbers(record),
        "settings": {"task": record.spec.task, "seed": record.spec.seed} | record.params,
        "notes": [*record.notes, *_not_judged(record)],
        "kinds": {kind: n for kind, n in found.kinds.items() if n} if found else {},
        "wrong": _wrong(answers),
        "logged": _last(history),
        "cost": dict(record.cost),
        "proof": _proof(record),
        "artefacts": dict(record.artefacts),
        "wall": f"{record.started} – {record.ended}",
    }


def _not_judged(record: Record) -> list[str]:
    metrics = record.metrics
    if metrics is None:
        return []
    parts = metrics.circuit.not_judged if metrics.circuit else {"circuit": metrics.circuit_not_judged}
    return [f"not judged, {part}: {why}" for part, why in parts.items() if why]


def _shares(record: Record) -> dict[str, Any]:
    metrics = record.metrics
    if metrics is None:
        return {}
    shifts = {f"length shift, {name}": value for name, value in metrics.length_shift.items()}
    return {"accuracy": metrics.accuracy, "strict": metrics.strict} | shifts


def _numbers(record: Record) -> dict[str, float]:
    metrics = record.metrics
    if metrics is None:
        return {}
    found: dict[str, float] = {
        "answers without integer": metrics.format_errors,
        "wrong integers": metrics.arithmetic_errors,
    }
    if metrics.cka:
        found |= {
            f"CKA, debiased ({metrics.cka.n} problems)": metrics.cka.debiased_mean,
            "CKA, biased": metrics.cka.biased_mean,
        }
    for model, mask in metrics.masks.items():
        found |= {f"mask sparsity, {model}": mask.sparsity, f"mask overlap, {model}": mask.overlap}
    if metrics.mask_agreement and metrics.mask_agreement.overlap:
        found["agreement of the masks' overlaps, above chance"] = metrics.mask_agreement.overlap.above_null
    found |= {f"perplexity, {split.removeprefix('shift_')}": value for split, value in metrics.perplexity.items()}
    if metrics.worked:
        found["answers at the end of a worked solution"] = metrics.worked
    if metrics.parameters_changed is not None:
        found["parameters changed"] = metrics.parameters_changed
    told = {name: number_at(metrics, path) for name, path in _OF_CIRCUIT.items()}
    return found | {name: value for name, value in told.items() if value is not None}


_OF_CIRCUIT = {
    "CPR, nodes": "circuit.faithfulness.cpr",
    "CMD, nodes": "circuit.faithfulness.cmd",
    "CPR, edges": "circuit.edges.faithfulness.cpr",
    "CMD, edges": "circuit.edges.faithfulness.cmd",
    "accuracy of the circuit alone": "circuit.accuracy.value",
    "accuracy without the circuit": "circuit.ablated.value",
    "attribution against exact patching, rank correlation, nodes": "circuit.exact.spearman",
    "attribution against exact patching, rank correlation, edges": "circuit.edges.exact.spearman",
    "interchange accuracy": "circuit.interchange.accuracy.value",
    "CKA of component pairs, debiased": "circuit.cka.debiased_mean",
    "CKA of best matches, debiased": "circuit.cka.best_mean",
}
"""What the evaluator says of a circuit, by names for people."""


def _wrong(answers: Answers) -> list[dict[str, str]]:
    """Some wrong answers, spread over the kinds."""
    by_kind: dict[str, list[dict[str, str]]] = {}
    for prediction in answers.get("test", ()):
        if kind := kind_of(prediction):
            by_kind.setdefault(kind, []).append(
                {
                    "kind": kind,
                    "prompt": printable(prediction.prompt, _LONGEST),
                    "answer": printable(prediction.answer, _LONGEST),
                    "text": printable(prediction.text, _LONGEST),
                }
            )
    each = max(1, _WRONG // max(1, len(by_kind)))
    return [wrong for found in by_kind.values() for wrong in found[:each]][:_WRONG]


def _last(history: Sequence[Mapping[str, float]]) -> dict[str, tuple[int, float]]:
    """The last step at which each number was logged, and the number."""
    found: dict[str, tuple[int, float]] = {}
    for line in history:
        found |= {
            key: (int(line["step"]), value) for key, value in line.items() if key not in ("step", "time", "epoch")
        }
    return dict(sorted(found.items()))


def _proof(record: Record) -> dict[str, str]:
    """What the number depends on."""
    code = {
        "code digest": record.code.digest,
        "evaluation": record.code.evaluation or "evaluated by an older version",
        "commit": record.code.commit + (" with uncommitted changes" if record.code.dirty else ""),
    }
    inputs = {f"input, {name}": str(value) for name, value in record.inputs.items() if isinstance(value, str)}
    machine = {f"machine, {key}": str(value) for key, value in flat(record.environment).items() if value is not None}
    return code | inputs | machine
