"""Records -> MLflow, one way, any number of times. MLflow is a view: it can be down, slow or gone, and nothing is lost.

One experiment a study, one parent run a study, a child per record. A child is found by its run id and digest; each metric
point keeps the time at which it was measured, so sending it twice stores it once.
"""

import math
import os
import textwrap
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdbench.errors import CdbenchError, EnvironmentLacks
from cdbench.files import parse_json_lines, sha256
from cdbench.plan import Places, SavedStudy
from cdbench.record import RECORD, Metrics, Record, number_at, read

if TYPE_CHECKING:
    from mlflow import MlflowClient

_BATCH = 1000
_STATUS = {"ok": "FINISHED", "interrupted": "KILLED"}


def default_uri(where: Places) -> str:
    """The embedded store: one SQLite file under `runs`."""
    return f"sqlite:///{where.runs / 'mlflow.db'}"


def sync(study: SavedStudy, where: Places, uri: str | None) -> tuple[int, int]:
    """Brings a tracking server up to date with a study.

    Returns:
        How many records were sent, and how many were there already.

    Raises:
        EnvironmentLacks: the server does not answer; the records are untouched and `cdbench sync` will send them.
    """
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # before the import
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    target = uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(where)
    where.runs.mkdir(parents=True, exist_ok=True)
    import logging

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    try:
        return _send(MlflowClient(target), study, where)
    except CdbenchError:
        raise
    except Exception as error:  # MLflow lets its HTTP client's, its database's and its own errors through
        reason = textwrap.shorten((str(error).strip() or type(error).__name__).splitlines()[0], 300, placeholder=" …")
        raise EnvironmentLacks(
            f"{target} cannot be brought up to date ({reason}); nothing is lost: the records are the truth. When it is back: "
            f"cdbench sync {study.name}"
        ) from None


def _send(client: "MlflowClient", study: SavedStudy, where: Places) -> tuple[int, int]:
    experiment = _experiment(client, f"cdbench/{study.name}", where)
    known = {
        (run.data.tags["cdbench.run_id"], run.data.tags.get("cdbench.record")): run
        for run in _all_runs(client, experiment)
        if "cdbench.run_id" in run.data.tags
    }
    records = [read(where.run(run_id)) for run_id in study.run_ids if (where.run(run_id) / RECORD).exists()]
    parent = known.get((study.name, None)) or client.create_run(
        experiment,
        start_time=min((_milliseconds(record.started) for record in records), default=None),
        run_name=study.name,
        tags={"cdbench.run_id": study.name, "cdbench.kind": "study", "mlflow.note.content": study.study.description},
    )
    sent = there = 0
    for run_id in study.run_ids:
        folder = where.run(run_id)
        if not (folder / RECORD).exists():
            continue
        stamp = sha256(folder / RECORD)[:16]
        if (run_id, stamp) in known and known[run_id, stamp].data.tags.get("cdbench.complete") == "yes":
            there += 1
            continue
        for (other, old), run in known.items():
            if other == run_id and old != stamp:  # the run was made again; the view shows what is, not what was
                client.delete_run(run.info.run_id)
        child = known.get((run_id, stamp))
        _send_record(client, experiment, parent.info.run_id, read(folder), folder, stamp, child)
        sent += 1
    ended = max((_milliseconds(record.ended) for record in records), default=None)
    client.set_terminated(parent.info.run_id, "FINISHED", end_time=ended)
    return sent, there


def _milliseconds(when: str) -> int:
    """A record's time as MLflow has it: when it ran, not when it was sent."""
    return round(datetime.fromisoformat(when).timestamp() * 1000)


def _experiment(client: "MlflowClient", name: str, where: Places) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    # Without this an embedded store puts artefacts into ./mlruns of whatever folder one happens to be in.
    local = client._tracking_client.tracking_uri.startswith("sqlite")
    location = (where.runs / "mlartifacts" / name).as_uri() if local else None
    return str(client.create_experiment(name, artifact_location=location))


def _all_runs(client: "MlflowClient", experiment: str) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_runs([experiment], max_results=500, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _send_record(  # noqa: PLR0913  (a record and where it goes)
    client: "MlflowClient", experiment: str, parent: str, record: Record, folder: Path, stamp: str, child: Any
) -> None:
    if child is None:
        child = client.create_run(
            experiment,
            start_time=_milliseconds(record.started),
            run_name=record.spec.label,
            tags={
                "mlflow.parentRunId": parent,
                "cdbench.run_id": record.run_id,
                "cdbench.record": stamp,
                "cdbench.kind": "run",
                "cdbench.status": record.status,
                "cdbench.error": record.error[:4000],
                "cdbench.method": record.spec.method,
                "cdbench.task": record.spec.task,
                "cdbench.profile": record.spec.profile.name,
                "cdbench.code_digest": record.code.digest,
                "mlflow.source.git.commit": record.code.commit,
                "cdbench.dirty": str(record.code.dirty).lower(),
            },
        )
    run_id = child.info.run_id
    from mlflow.entities import Param

    client.log_batch(run_id, params=[Param(key, str(value)[:500]) for key, value in _parameters(record).items()])
    points = list(_points(record, folder))
    for start in range(0, len(points), _BATCH):
        client.log_batch(run_id, metrics=points[start : start + _BATCH])
    for name in (RECORD, "predictions.jsonl"):
        if (folder / name).exists():
            client.log_artifact(run_id, str(folder / name))
    client.set_terminated(run_id, _STATUS.get(record.status, "FAILED"), end_time=_milliseconds(record.ended))
    client.set_tag(run_id, "cdbench.complete", "yes")


def _parameters(record: Record) -> dict[str, object]:
    training = record.spec.profile.training.model_dump(mode="json")
    return {
        "method": record.spec.method,
        "task": record.spec.task,
        "seed": record.spec.seed,
        "profile": record.spec.profile.name,
        **{f"method.{key}": value for key, value in record.params.items()},
        **{f"training.{key}": value for key, value in training.items()},
    }


def _points(record: Record, folder: Path) -> Iterator[Any]:
    from mlflow.entities import Metric

    last_time = 0
    history = folder / "history.jsonl"
    for row in parse_json_lines(history.read_text()) if history.exists() else ():
        step, last_time = row.pop("step"), row.pop("time")
        for key, value in row.items():
            if math.isfinite(value):
                yield Metric(f"train/{key}", float(value), last_time, step)
    if record.metrics is not None:
        for key, value in final_metrics(record.metrics).items():
            yield Metric(f"final/{key}", value, last_time, 0)  # one value at step 0 is drawn as a bar a run


def final_metrics(metrics: Metrics) -> dict[str, float]:
    """The evaluator's numbers under the names that MLflow shows."""
    values = {
        "accuracy": metrics.accuracy.value,
        "accuracy_low": metrics.accuracy.low,
        "accuracy_high": metrics.accuracy.high,
        "accuracy_strict": metrics.strict.value,
        "format_errors": float(metrics.format_errors),
        "arithmetic_errors": float(metrics.arithmetic_errors),
    }
    values |= {f"length_shift/{name}": share.value for name, share in metrics.length_shift.items()}
    if metrics.cka is not None:
        values |= {"cka_debiased": metrics.cka.debiased_mean, "cka_biased": metrics.cka.biased_mean}
    for name, masks in metrics.masks.items():
        values |= {f"masks/{name}_sparsity": masks.sparsity, f"masks/{name}_overlap": masks.overlap}
    values |= {f"perplexity/{name}": value for name, value in metrics.perplexity.items()}
    told = {f"circuit/{name}": number_at(metrics, f"circuit.{path}") for name, path in _OF_CIRCUIT.items()}
    return values | {name: value for name, value in told.items() if value is not None}


_OF_CIRCUIT = {
    "alone": "accuracy.value",
    "cpr_nodes": "faithfulness.cpr",
    "cmd_nodes": "faithfulness.cmd",
    "cpr_edges": "edges.faithfulness.cpr",
    "cmd_edges": "edges.faithfulness.cmd",
    "interchange": "interchange.accuracy.value",
    "cka_pairs": "cka.debiased_mean",
}
