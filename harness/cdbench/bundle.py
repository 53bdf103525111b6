"""A finished study as one file that somebody else can check and repeat without us: an RO-Crate (https://w3id.org/ro/crate/1.1).

In it, laid out as a runs folder, so that every command works on it: the study, its report, and records with specs, histories,
logs, predictions and weights; beside them the package with the plug-ins that ran, templates, Dockerfiles and locks, as a wheel
has them, so that it runs from there; and SHA256SUMS over everything.
"""

import shutil
import tempfile
import zipfile
from pathlib import Path

from rocrate.model.entity import Entity
from rocrate.rocrate import ROCrate

from cdbench import __version__, discover, plugins, record
from cdbench.containers import images
from cdbench.errors import UserError
from cdbench.files import explained, sha256
from cdbench.plan import STUDY_FILE, Places, SavedStudy
from cdbench.provenance import code_of
from cdbench.record import Record
from cdbench.report.build import write_report
from cdbench.report.collect import UNTRAINED, reports_folder

SUMS = "SHA256SUMS"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_PACKAGE = Path(plugins.__file__).resolve().parents[1]
_OF_A_RUN = (
    "record.json", "spec.json", "code.txt", "history.jsonl", "outcome.json", "metrics.json", "predictions.jsonl",
    "student.safetensors", "masks.safetensors",
    *(record.log_file(step, stream) for step in ("train", "evaluate") for stream in record.STREAMS),
)  # fmt: skip
_README = """# {title}

A cdbench study, packed by `cdbench bundle {name}` (cdbench {version}). `ro-crate-metadata.json` describes every part.

`cdbench bundle` printed the SHA-256 of the zip. Whoever packed it can say it: first hold the zip against that (`sha256sum`), as
all else that follows comes out of the zip itself. Both of these then print nothing:

    sha256sum --check --quiet SHA256SUMS                                     # no file was altered
    comm -13 <(cut -c67- SHA256SUMS | sort) <(find * -type f ! -path 'env/*' ! -name SHA256SUMS | sort)        # none was added

The study, checked and made again:

    bash code/cdbench/plugins/docker/install-env.sh env                      # the environment, from the hashed lock
    export PYTHONPATH=$PWD/code                                              # the code that ran
    env/bin/python -m cdbench score {run} --runs .             # a run's predictions, scored again; needs no model
    env/bin/python -m cdbench report {name} --runs .                         # the report again, from the records alone
{verify}
The runs are in `records/`. They were made by

    {command}

and `env/bin/python -m cdbench build` makes the image for `--runner docker`.

{weights}
"""


def bundle(saved: SavedStudy, where: Places, target: Path, *, weights: bool = True) -> list[str]:
    """Packs a study into `target`, a .zip; returns the names in it.

    Raises:
        UserError: a run has no record, a file is not what its record says, or `target` exists.
        EnvironmentLacks: `target` cannot be written.
    """
    if target.exists():
        raise UserError(f"{target} exists already; name another file with --output")
    missing = [run_id for run_id in saved.run_ids if not (where.run(run_id) / record.RECORD).exists()]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(saved.run_ids)} runs of {saved.name} have no record yet ({missing[0]} for one): a "
            f"bundle holds whole studies. {saved.command}{', without -k,' if ' -k' in saved.command else ''} runs the rest"
        )
    records = [record.read(where.run(run_id)) for run_id in saved.run_ids]
    for done in records:
        if done.code.digest != (own := code_of(done.spec).digest):
            raise UserError(
                f"run {done.run_id} was made by other code (digest {done.code.digest}) than would be packed ({own}); check "
                f"out commit {done.code.commit[:12]}, or run the study again"
            )
        if damaged := record.damaged_artefacts(where.run(done.run_id), done):
            raise UserError(
                f"run {done.run_id}: {damaged[0]} is missing or was altered; run the study again, then pack it"
            )
    write_report(saved, where)
    with explained(target, "the bundle"), tempfile.TemporaryDirectory(prefix="cdbench-bundle-") as name:
        folder = Path(name) / "crate"
        _collect(folder, saved, where, records, weights)
        _describe(folder, saved, records)
        _write_sums(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        return _zip(folder, target)


def _collect(folder: Path, saved: SavedStudy, where: Places, records: list[Record], weights: bool) -> None:
    study = folder / saved.name
    shutil.copytree(saved.folder / "report", study / "report")
    shutil.copyfile(saved.folder / STUDY_FILE, study / STUDY_FILE)
    for done in records:
        target = folder / "records" / done.run_id
        target.mkdir(parents=True)
        for name in _OF_A_RUN:
            source = where.run(done.run_id) / name
            if source.is_file() and (weights or source.suffix != ".safetensors"):
                shutil.copyfile(source, target / name)
    skipped = shutil.ignore_patterns("__pycache__", "*.pyc")
    code = folder / "code" / "cdbench"
    shutil.copytree(_PACKAGE, code, ignore=skipped)
    own = code / "plugins"
    for each in ("methods", "tasks", "reports", "docker"):  # those of a wheel: what did not run is not packed
        shutil.rmtree(own / each, ignore_errors=True)
    methods, tasks = discover.find("methods"), discover.find("tasks")
    used = {path for done in records for path in [methods.get(done.spec.method)] if path}
    for kind, paths in (("methods", used), ("tasks", set(tasks.values()))):
        (own / kind).mkdir()
        for path in sorted(paths):
            shutil.copyfile(path, own / kind / path.name)
    shutil.copytree(images.folder(), own / "docker", ignore=skipped)
    shutil.copytree(reports_folder(), own / "reports", ignore=skipped)
    told = "The students' weights are in `records/*/student.safetensors`."
    if not weights:
        told = "Weights were left out (`--no-weights`): nothing can be verified. Their SHA-256 sums are in the records."
    trained = next((done for done in records if done.status == "ok" and done.spec.method not in UNTRAINED), records[0])
    text = _README.format(
        title=saved.study.title, name=saved.name, version=__version__, command=saved.command, weights=told,
        run=trained.run_id, verify=_verify(trained) if weights else "",
    )  # fmt: skip
    (folder / "README.md").write_text(text)


def _verify(trained: Record) -> str:
    """How a run is trained again; in an image of the same recipe where it was made in a container."""
    container = trained.environment.get("container") or {}
    command = f"    env/bin/python -m cdbench verify {trained.run_id} --rerun --runs . --store store"
    if "image" not in container:
        return f"{command}    # trained again from its spec, held byte for byte\n"
    image = container["image"]
    from_host = " --from-host" if ":host-" in image else ""
    return (
        f"    env/bin/python -m cdbench build{from_host}    # the image that the runs were made in; built anew it has this tag\n"
        f"{command} --image {image}    # trained again there\n"
    )


def _describe(folder: Path, saved: SavedStudy, records: list[Record]) -> None:
    """Writes ro-crate-metadata.json: every file, and each run as an action with its instruments, results and end."""
    crate = ROCrate()
    crate.name, crate.description = saved.study.title, saved.study.description
    crate.license = "https://spdx.org/licenses/Apache-2.0"
    software = crate.add(
        Entity(crate, "#cdbench", {"@type": "SoftwareApplication", "name": "cdbench", "softwareVersion": __version__})
    )
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        place = path.relative_to(folder).as_posix()
        crate.add_file(path, place, properties={"contentSize": str(path.stat().st_size), "sha256": sha256(path)})
    for done in records:
        results = [
            crate.get(f"records/{done.run_id}/{name}")
            for name in ("record.json", *done.artefacts)
            if (folder / "records" / done.run_id / name).is_file()
        ]
        container = done.environment.get("container") or {}
        action = Entity(
            crate,
            f"#run-{done.run_id}",
            {
                "@type": "CreateAction",
                "name": done.spec.label,
                "startTime": done.started,
                "endTime": done.ended,
                "actionStatus": f"http://schema.org/{'Completed' if done.status == 'ok' else 'Failed'}ActionStatus",
                "description": done.error or "ended well",
                "codeDigest": done.code.digest,
                "codeCommit": done.code.commit,
                "containerImage": container.get("image_id", "none"),
            },
        )
        crate.add(action)
        action["instrument"], action["object"] = software, crate.get(f"records/{done.run_id}/spec.json")
        action["result"] = results
        crate.root_dataset.append_to("mentions", action)
    crate.metadata.write(folder)


def _write_sums(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    (folder / SUMS).write_text("".join(f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files))


def _zip(folder: Path, target: Path) -> list[str]:
    """Entries in order, all of one time: what differs between two bundles is what differs in them."""
    names = []
    partial = target.with_name(f".{target.name}.partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            names.append(path.relative_to(folder).as_posix())
            info = zipfile.ZipInfo(names[-1], _EPOCH)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            with path.open("rb") as source, archive.open(info, "w", force_zip64=True) as sink:
                shutil.copyfileobj(source, sink)
    partial.replace(target)
    return names
