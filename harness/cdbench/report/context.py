"""What the templates show: rows of tables, sentences, figures. Every number comes from a record and names its runs."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np

from cdbench import __version__
from cdbench.config import TEACHER, HubModel, Profile, ZooModel
from cdbench.inference import Interval, share_interval
from cdbench.report import ledger as forms
from cdbench.report.abilities import ability_rows
from cdbench.report.anatomy import KINDS, Anatomy
from cdbench.report.circuits import circuit_notes, circuit_rows, circuit_table, digit_names, even_head_rows
from cdbench.report.claims import Verdict, counts, counts_apart, gradient_shares, judge
from cdbench.report.collect import Group, StudyData, hits_of, machine_of, mean_of, short
from cdbench.report.component_pairs import pair_rows
from cdbench.report.formats import number, p_value, percent, points
from cdbench.report.ledger import Claim, FailedRun, Ledger, read_ledger
from cdbench.report.mask_classes import FEATURES, followed, problem_classes
from cdbench.report.pictures import alike_layers, circuits_of, draw_all
from cdbench.report.runs import run_page
from cdbench.report.sensitivity import factor_effects
from cdbench.report.tables import carry_table, grid_table, mask_table, pair_table

Row = dict[str, Any]


def build_context(data: StudyData) -> Row:
    """Everything that the templates show."""
    # The reference row is not trained: a study's training budget stands in the other rows.
    trained = next((r for r in data.records if r.spec.method != TEACHER), data.records[0])
    ledger = read_ledger()
    rows, circuits = [table_row(group, data, ledger) for group in data.groups], circuits_of(data)
    context = _of_study(data, trained.spec.profile) | _of_claims(data, ledger) | _of_rows(data) | _of_provenance(data)
    context |= {
        "rows": rows,
        "shift_names": sorted({name for row in rows for name in row["shift"]}),
        "shift_table": shift_table(rows),
        "grid": (cells := grid(data, ledger.failed_run)),
        "grid_table": grid_table(cells),
        "printed_of_nothing": printed_of_nothing(ledger),
        "failed_claim": ledger.failed_run,
        "pictures": draw_all(data, rows),
        "circuits": circuits,
        "alike": {role: alike_layers(circuits, role) for role in ("teacher", "student")} if circuits else {},
    }
    return context | {"sections": _sections(context)}


def _of_study(data: StudyData, profile: Profile) -> Row:
    return {
        "title": data.saved.study.title,
        "study": data.saved,
        "version": __version__,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "profile": profile,
        "n_test": profile.data.test,
        "differences": differences(profile, data),
        "seeds": sorted({r.spec.seed for r in data.records}),
        "tasks": sorted({r.spec.task for r in data.records}),
        "command": data.saved.command,
        "missing": data.missing,
        "failures": data.failures,
        "noted": [record for record in data.records if record.notes],
    }


def _of_claims(data: StudyData, ledger: Ledger) -> Row:
    verdicts = judge(ledger.claim, data)
    return {
        "verdicts": [verdict_row(verdict) for verdict in verdicts],
        "verdict_counts": counts(verdicts),
        "verdicts_apart": counts_apart(verdicts),
        "ledger": [ledger_row(verdict) for verdict in verdicts],
    }


def _of_rows(data: StudyData) -> Row:
    circuits, effects, masks = circuit_rows(data), factor_effects(data.groups), mask_rows(data)
    errors = [error_row(group, found) for group in data.groups if (found := group.anatomy)]
    counted: dict[int, set[int]] = {}
    for row in errors:
        for n, (problems, _) in row["by_carries"].items():
            counted.setdefault(n, set()).add(problems)
    return {
        "errors": errors,
        "error_table": [
            {"row": row["name"], "strict": row["strict"], **row["kinds"], "run_ids": row["run_ids"]} for row in errors
        ],
        "carry_table": carry_table(errors),
        "kinds": KINDS,
        "carry_counts": sorted(counted),
        # Rows of two tasks have not the same problems.
        "carry_headers": [f"{n} ({min(counted[n])})" if len(counted[n]) == 1 else str(n) for n in sorted(counted)],
        "effects": effects,
        "effect_table": [asdict(effect) for effect in effects],
        "mask_rows": masks,
        "mask_table": mask_table(masks),
        "circuit_rows": circuits,
        "circuit_notes": circuit_notes(data, circuits),
        "digit_names": digit_names(circuits),
        "pair_rows": pair_rows(data),
        "pair_table": pair_table(data),
        "circuit_table": circuit_table(circuits),
        "even_heads": even_head_rows(data),
        "ability_rows": ability_rows(data),
        "features": FEATURES,
        "costs": cost_rows(data),
        "weighing": [
            {"name": g.name, "share": g.alignment_share, "run_ids": g.run_ids}
            for g in data.groups
            if g.alignment_share is not None
        ],
    }


def _of_provenance(data: StudyData) -> Row:
    return {
        "runs": runs_of(data),
        "environment": next((r.environment for r in data.records if r.environment), {}),
        "commits": sorted({(r.code.commit, r.code.dirty) for r in data.records}),
        "digests": {g.name: ", ".join(sorted({r.code.digest for r in (*g.records, *g.failed)})) for g in data.groups},
        "mixed": mixed_versions(data),
        "machine": "; ".join(sorted({machine_of(record) for record in data.records if record.environment})),
        "inputs": next((r.inputs for r in data.records if r.inputs), {}),
        "first_prompt": next(((m.first_prompt, m.first_prompt_ids) for r in data.records if (m := r.metrics)), None),
    }


def _sections(context: Row) -> list[tuple[str, str]]:
    """Anchors and names for the page's navigation."""
    sections = {
        "what": ("What was run", True),
        "claims": ("Claims", True),
        "grid": ("Failed run", context["grid"]),
        "sensitivity": ("Sensitivity", context["grid"] or context["effects"]),
        "table1": ("Rows" if context["grid"] else "Table 1", True),
        "errors": ("Errors", context["errors"]),
        "shift": ("Length shift", context["shift_names"]),
        "ability": ("General ability", context["ability_rows"]),
        "dynamics": ("Dynamics", "figure-dynamics" in context["pictures"]),
        "circuits": ("Layers", context["circuits"]),
        "components": ("Circuits", context["circuit_rows"]),
        "masks": ("Masks", context["mask_rows"]),
        "cost": ("Cost", context["costs"]),
        "failures": ("Failures", True),
        "provenance": ("Provenance", True),
        "runs": ("Runs", True),
    }
    return [(anchor, name) for anchor, (name, there) in sections.items() if there]


def verdict_row(verdict: Verdict) -> Row:
    """One row of the claim ledger."""
    claim, found = verdict.claim, verdict.evidence
    shown = _SHOWN[found.unit] if found else None
    paper: float | None = getattr(claim, "paper", None)
    as_share = claim.decided_by in ("value", "at_point", "metric")
    return {
        "id": claim.id,
        "says": claim.says,
        "source": claim.source,
        "verdict": verdict.outcome,
        "paper": "–" if paper is None else percent(paper) if as_share else points(paper),
        "asserted": asserted(claim),
        "effect": shown(found.effect) if found and shown else "–",
        "interval": f"[{shown(found.spread.low)}, {shown(found.spread.high)}]"
        if found and shown and found.spread
        else "–",
        "p_holm": None if verdict.p_holm is None else p_value(verdict.p_holm),
        "seeds": found.seeds if found else None,
        "why": verdict.why,
        "run_ids": list(found.run_ids) if found else [],
    }


def ledger_row(verdict: Verdict) -> Row:
    """The same for a spreadsheet: numbers as they are."""
    found = verdict.evidence
    in_points = isinstance(verdict.claim, forms.Difference | forms.Drop | forms.Equivalence | forms.Order | forms.Value)
    in_points = in_points or (found is not None and found.unit == "points")
    scale = 100 if in_points else 1
    paper = getattr(verdict.claim, "paper", None)
    return {
        "id": verdict.claim.id,
        "verdict": verdict.outcome,
        "says": verdict.claim.says,
        "source": verdict.claim.source,
        "asserted": asserted(verdict.claim),
        "unit": "points" if in_points else found.unit if found else "",
        "paper": None if paper is None else scale * paper,
        "effect": scale * found.effect if found else None,
        "low": scale * found.spread.low if found and found.spread else None,
        "high": scale * found.spread.high if found and found.spread else None,
        "p_holm": verdict.p_holm,
        "seeds": found.seeds if found else None,
        "seeds_to_decide": verdict.seeds_to_decide,
        "why": verdict.why,
        "runs": " ".join(found.run_ids) if found else "",
    }


_SHOWN: dict[str, Callable[[float | None], str] | None] = {
    "points": points,
    "share": percent,
    "correlation": number,
    "number": number,
    "ratio": number,
    "mathematics": None,
}


def asserted(claim: Claim) -> str:
    """What would have to be seen, in symbols."""
    split = "" if getattr(claim, "split", "test") == "test" else f" on {getattr(claim, 'split', '')}"
    return (_of_accuracy(claim) or _of_numbers(claim)) + split


def _of_accuracy(claim: Claim) -> str:
    match claim:
        case forms.Difference():
            return f"{claim.high}{_at(claim.high_at)} − {claim.low}{_at(claim.low_at)} > {100 * claim.margin:g}"
        case forms.Drop():
            return _ends(claim, f"what {claim.row} loses", lambda share: f"{100 * share:g}")
        case forms.Equivalence():
            return f"|{claim.one} − {claim.other}| < {100 * claim.margin:g}"
        case forms.Order():
            return " > ".join(claim.rows)
        case forms.Value():
            return f"|{claim.row} − {percent(claim.paper)}| < {100 * claim.margin:g}"
        case forms.AtPoint():
            return _ends(claim, f"{claim.row}{_at(claim.at)}", percent)
    return ""


def _at(point: dict[str, float]) -> str:
    return " at " + ", ".join(f"{short(key)} = {value:g}" for key, value in point.items()) if point else ""


def _ends(
    claim: forms.AtPoint | forms.Drop | forms.Metric, what: str, show: Callable[[float], str] = "{:g}".format
) -> str:
    """`what` between the bounds of a claim: 0.85 ≤ x ≤ 0.95, x ≥ 0.9, x ≤ 0.05."""
    low, high = (None if end is None else show(end) for end in (claim.at_least, claim.at_most))
    if low is None:
        return f"{what} ≤ {high}"
    return f"{what} ≥ {low}" if high is None else f"{low} ≤ {what} ≤ {high}"


def _of_numbers(claim: Claim) -> str:
    match claim:
        case forms.GradientShare():
            return f"λ·‖∇{claim.term}‖ / ‖∇{claim.of}‖ > 1"
        case forms.Metric():
            return _ends(claim, claim.metric, percent if claim.unit == "share" else "{:g}".format)
        case forms.MetricDifference():
            return f"{claim.metric}: {claim.high} − {claim.low} > {claim.margin:g}"
        case forms.EvenHeads():
            return f"even heads of the later layers of {claim.row} have more importance than shuffled ones"
        case forms.Trend():
            parts = f", in each of {claim.parts} equal parts of the training" if claim.parts > 1 else ""
            return f"rank correlation of {claim.series} with {claim.against} {'>' if claim.sign > 0 else '<'} 0{parts}"
        case forms.Mathematics():
            return f"the law {claim.law} {'asserts' if claim.law_says else 'denies'} it"
    return "–"


def printed_of_nothing(ledger: Ledger) -> list[str]:
    """Numbers of the papers' Table 1 that no row can ever stand beside, each as a sentence."""
    return [
        f"The paper's {percent(row.paper)} ({row.source}) stands beside no row: {slip}"
        for row in ledger.table1
        if (slip := forms.unknown(row.method, row.task))
    ]


def table_row(group: Group, data: StudyData, ledger: Ledger) -> Row:
    """One row of Table 1."""
    # A swept row is not the paper's row, even where one of its points is.
    printed = [] if group.point or data.of_paper_b else ledger.table1
    paper = next((row for row in printed if (row.method, row.task) == (group.method, group.task)), None)
    teacher = data.beside(group, TEACHER)
    ok = bool(group.records)
    shift = sorted({name for r in group.records if r.metrics for name in r.metrics.length_shift})
    return {
        "name": group.name,
        "method": group.method,
        "task": group.task,
        "paper": paper.paper if paper else None,
        "paper_source": paper.source if paper else "",
        "mean": group.mean if ok else None,
        "low": group.interval[0] if ok else None,
        "high": group.interval[1] if ok else None,
        "interval": group.interval if ok else None,
        "per_seed": group.per_seed if ok else [],
        "gap": group.mean - teacher.mean if ok and teacher and group.method != TEACHER else None,
        "cka_debiased": group.metric("cka.debiased_mean"),
        "cka_biased": group.metric("cka.biased_mean"),
        "sparsity": group.metric("masks.student.sparsity"),
        "overlap": group.metric("masks.student.overlap"),
        "worked": (group.metric("worked") or 0.0) / group.hits.shape[1] if ok else 0.0,
        "format_errors": group.metric("format_errors"),
        "strict": group.metric("strict.value"),
        "shift": {name: shift_of(group, name) for name in shift},
        "seeds": len(group.records),
        "identical": ok and len(group.records) > 1 and bool((group.hits == group.hits[0]).all()),
        "failed": len(group.failed),
        "params": next((r.params for r in group.records), {}),
        "run_ids": group.run_ids,
    }


def shift_table(rows: Sequence[Row]) -> list[Row]:
    """Accuracy on each length-shift set, a line a row and set."""
    return [
        {
            "name": row["name"],
            "task": row["task"],
            "set": name,
            "mean": found[0],
            "interval": found[1],
            "seeds": row["seeds"],
            "run_ids": row["run_ids"],
        }
        for row in rows
        for name, found in row["shift"].items()
        if found
    ]


def shift_of(group: Group, name: str) -> tuple[float, Interval] | None:
    """Accuracy on a length-shift set, with its interval over seeds and problems."""
    hits = hits_of(group.answers, f"shift_{name}")
    return None if hits is None else (float(hits.mean()), share_interval(hits))


def error_row(group: Group, found: Anatomy) -> Row:
    """How a row's answers fail: of 1,000 problems, mean over seeds."""
    return {
        "name": group.name,
        "kinds": {kind: 1000 * n / found.problems for kind, n in found.kinds.items()},
        "strict": group.metric("strict.value"),
        "by_carries": found.by_carries,
        "run_ids": group.run_ids,
    }


def cost_rows(data: StudyData) -> list[Row]:
    """What each row took, mean over seeds; `ratio` to the training time of plain fine-tuning, where the study has it."""
    found = []
    for group in (g for g in data.groups if g.records):
        seconds = group.metric_cost("train_seconds")
        reference = data.beside(group, "finetune")
        base = reference.metric_cost("train_seconds") if reference else None
        found.append(
            {
                "name": group.name,
                "steps": group.metric_cost("steps"),
                "train_seconds": seconds,
                "ratio": seconds / base if seconds and base and group.metric_cost("steps") else None,
                "train_memory": group.metric_cost("train_peak_memory_mib"),
                "evaluate_seconds": group.metric_cost("evaluate_seconds"),
                "run_ids": group.run_ids,
            }
        )
    return found


def mixed_versions(data: StudyData) -> list[str]:
    """What speaks against comparing the runs of this report: sentences, none where one version made them all on one machine."""
    told = []
    if (n := len({r.code.evaluation for r in data.records if r.metrics})) > 1:
        told.append(f"{n} versions of the evaluator judged them: rows of two of them cannot be compared.")
    if changed := [g.name for g in data.groups if len({r.code.digest for r in (*g.records, *g.failed)}) > 1]:
        told.append(f"The runs of {', '.join(changed)} were not all made by the same code.")
    if (n := len({r.code.commit for r in data.records})) > 1:
        told.append(f"They were made at {n} commits.")
    if len(machines := sorted({machine_of(r) for r in data.records if r.environment.get("versions")})) > 1:
        told.append(f"They ran on {len(machines)} kinds of machine ({'; '.join(machines)}): times do not compare.")
    return told


def mask_rows(data: StudyData) -> list[Row]:
    """One row a run with masks: sparsity, overlap, agreement of the two models, and what its classes follow."""
    found = []
    for group in data.groups:
        for record in group.records:
            if record.metrics and record.metrics.masks:
                classes = problem_classes(record.extras)
                found.append(
                    {
                        "name": group.name,
                        "seed": record.spec.seed,
                        "run_id": record.run_id,
                        "masks": record.metrics.masks,
                        "agreement": record.metrics.mask_agreement,
                        "sizes": np.bincount(classes.classes).tolist() if classes else [],
                        "follows": followed(classes) if classes else {},
                    }
                )
    return found


def runs_of(data: StudyData) -> list[Row]:
    """A page a run, in the study's order."""
    said = {
        record.run_id: (answers, history)
        for group in data.groups
        for record, answers, history in zip(group.records, group.answers, group.histories, strict=True)
    }
    rows = {run_id: f"row-{i}" for i, group in enumerate(data.groups, 1) for run_id in group.run_ids}
    return [run_page(r, rows[r.run_id], *said.get(r.run_id, ({}, []))) for r in data.records]


def differences(profile: Profile, data: StudyData) -> list[str]:
    """How this study differs from the paper's setting, in sentences made from the profile."""
    if data.of_paper_b:
        return _from_paper_b(profile, data)
    told = []
    for role, paper in (("teacher", "Llama-3-8B"), ("student", "Llama-3.2-1B")):
        config = profile.teacher if role == "teacher" else profile.student
        if isinstance(config, ZooModel):
            told.append(
                f"The {role} is a Llama of {config.layers} layers and width {config.hidden}, trained from scratch on this "
                f"task{' and others' * bool(profile.data.zoo_tasks)}; the paper's is {paper}, pretrained on text."
            )
        elif not (
            isinstance(config, HubModel) and config.repo.endswith(paper.replace("Llama-3-8B", "Meta-Llama-3-8B"))
        ):
            told.append(
                f"The {role} is {getattr(config, 'repo', getattr(config, 'path', ''))}; the paper's is {paper}."
            )
    training = profile.training
    if training.epochs != 50:
        told.append(f"{training.epochs} epochs instead of 50.")
    if training.lr != 1e-4 or training.batch_size != 32:
        told.append(f"Learning rate {training.lr:g} and batch size {training.batch_size} instead of 1e-4 and 32.")
    told += [*_known_before(profile), _leak(profile, data), *_readings(data)]
    told.append(
        "The paper's code keeps the checkpoint of best test accuracy; here the test split chooses nothing (errata A10)."
    )
    if profile.name == "smoke":
        told.insert(0, "This is the smoke profile: it shows that the flow works. Its numbers mean nothing.")
    return told


def _from_paper_b(profile: Profile, data: StudyData) -> list[str]:
    tasks = ", ".join(sorted({r.spec.task for r in data.records}))
    told = [
        "Paper B has Llama-3-70B-Instruct teach Llama-3-8B, on 100,000 sums and differences of two to five digits; here the "
        f"profile is {profile.name}, and the students are trained on {profile.data.train:,} problems of {tasks}, for "
        f"{profile.training.epochs} epochs. MIB's problems, which paper B adds, are not among them.",
        "Paper B measured nothing: its Table 1 is of hypotheses (errata C5; two digits, five digits: base 45.2 %, 12.5 %; SFT "
        "98.5 %, 42.1 %; KD 98.8 %, 55.3 %; CoT 97.2 %, 61.0 %; circuit distillation 98.1 %, 84.5 %). Its claims stand in the "
        "ledger below; no number of it stands beside ours in the table.",
        "The weights of the terms, the share of components that is the circuit, and what it is for two components to have one "
        "function are not printed; what was taken stands in each run's hyperparameters. 'Circuit distillation' in the claims is "
        "atp_cd: logits and aligned components, training the circuit's parameters; equation 3 is three_term.",
    ]
    told += _solutions(data)
    if profile.name == "smoke":
        told.insert(0, "This is the smoke profile: it shows that the flow works. Its numbers mean nothing.")
    return [*told, *_known_before(profile), _leak(profile, data), *_readings(data)]


def _solutions(data: StudyData) -> list[str]:
    """Whose the worked solutions are that `cot` learns from."""
    extras = [r.extras for r in data.records if r.spec.method == "cot" and "solutions" in r.extras]
    own, of = (sum(int(each.get(key, 0)) for each in extras) for key in ("by_teacher", "solutions"))
    if not extras:
        return []
    return [
        f"Of the worked solutions that cot learns from {percent(own / of if of else 0.0)} are the teacher's own, as all of "
        "paper B's are; the others are written by the rule of column-wise addition, for a teacher that does not write any."
    ]


def _known_before(profile: Profile) -> list[str]:
    if not profile.data.zoo_tasks:
        return []
    tasks = ", ".join(profile.data.zoo_tasks)
    learned = " ".join(
        _how_it_learned(role, model)
        for role, model in (("teacher", profile.teacher), ("student", profile.student))
        if isinstance(model, ZooModel)
    )
    return [
        f"Before anything is distilled, models trained on the spot learned from {profile.data.zoo_train:,} problems of each of "
        f"{tasks}, too. {learned} What a model knows of each length follows from that and from its seed; it stands in the rows "
        "teacher and base. A row's accuracy there is what it kept of that, and what it gained: only a row above base has gained, "
        "and a row that trains fewer parameters may be above another because it forgets less. Where base itself solves none "
        "there was nothing to keep."
    ]


def _how_it_learned(role: str, model: ZooModel) -> str:
    told = f"The {role} learned those and the training split together"
    if model.pretrained_at is not None:
        known = percent(model.pretrained_at)
        told = f"The {role} learned those alone until it solved {known} of each, then the training split, too"
    if model.training_share is not None:
        told += f", which was {percent(model.training_share)} of what it then saw"
    if model.stop_at is not None:
        told += f", until it solved {percent(model.stop_at)} of the validation problems or its steps were over"
    return f"{told}."


def _leak(profile: Profile, data: StudyData) -> str:
    leaked = next((r.inputs.get("test_twins_in_train") for r in data.records if r.inputs), None)
    if leaked is None:
        return "How many test problems have a twin in the training split is not known: no run got so far."
    if profile.data.split == "strict":
        return (
            f"No twin (a+b, b+a) of a test problem is in the training split ({leaked} of {profile.data.test} found); paper A's "
            "released split has 407 of 1,000."
        )
    return f"{leaked} of {profile.data.test} test problems have a twin in the training split, as in paper A's."


def _readings(data: StudyData) -> list[str]:
    """Of what this study has rows for."""
    told = []
    if any(r.params.get("direction") == "teacher_first" for r in data.records):
        told.append(
            "KL has the teacher's distribution first, as distillation and paper B have it; paper A's formula prints the "
            "student's first."
        )
    if {"base", "finetune"} <= {group.method for group in data.groups} and not data.of_paper_b:
        told.append(
            "The untouched student (base) and the fine-tuned one are two rows; the paper's table has one (errata A3)."
        )
    told.append(
        "Cross-entropy and KL are of the answer's tokens and the end of text, not of the prompt's (errata A4); mean ablation "
        "takes its means from training problems (errata A6)."
    )
    if steps := data.records[0].spec.profile.training.warmup_steps:
        told.append(f"The learning rate rises over the first {steps} steps.")
    return told


def grid(data: StudyData, failed: FailedRun) -> Row | None:
    """The 2x2 of the failed-run study: λ down, learning rate across; None where the study sweeps something else."""
    keys = (forms.WEIGHT, "training.lr")
    groups = [g for g in data.groups if all(key in g.point for key in keys)]
    # A third factor, a second method or task would put two rows into one cell.
    if {tuple(g.point) for g in groups} != {keys} or len({(g.method, g.task) for g in groups}) != 1:
        return None
    weights, lrs = (sorted({float(g.point[key]) for g in groups}) for key in keys)
    cells: dict[tuple[float, float], Row] = {}
    for group in groups:
        weight, lr = (float(group.point[key]) for key in keys)
        if before := cells.get((weight, lr)):  # by another evaluation, or beside other models: neither stands for both
            counts = {
                key: before[key] + len(found) for key, found in (("seeds", group.records), ("failed", group.failed))
            }
            nothing: Row = dict.fromkeys(("mean", "interval", "share"))
            before |= {**nothing, **counts, "run_ids": [*before["run_ids"], *group.run_ids], "mixed": True}
            continue
        ok = bool(group.records)
        cells[weight, lr] = {
            "mean": group.mean if ok else None,
            "interval": group.interval if ok else None,
            "seeds": len(group.records),
            "failed": len(group.failed),
            "share": mean_of(gradient_shares(group, weight, "cka", "kl")),
            "marked": weight == failed.weight and lr == failed.lr,
            "run_ids": group.run_ids,
            "mixed": False,
        }
    if (failed.weight, failed.lr) not in cells:
        return None
    headers = [f"LR {lr:g}" for lr in lrs]
    return {"weights": weights, "lrs": lrs, "headers": headers, "cells": cells}
