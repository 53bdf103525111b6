"""What the shared loop costs over a bare PyTorch loop that does the same steps, and what the alignment costs over neither.

    python benchmarks/loop_overhead.py

Blocks of steps of both alternate in one process, so that a noisy machine hits both; the ratio is that of the medians.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from machine import save
from transformers import LlamaForCausalLM

from cdbench.api import CkaAlignment, Components, CrossEntropy, Kl, Signal, Term
from cdbench.config import TrainingConfig, ZooModel, build_profile
from cdbench.data import make_splits
from cdbench.discover import make_task
from cdbench.seeds import generator_for
from cdbench.sites import LOGITS, captured, mlp_out
from cdbench.tokens import encode
from cdbench.train import History, Loop, TrainingProblem
from cdbench.zoo import fresh, make_tokenizer, zoo_config

BLOCKS, STEPS = 15, 50
PROFILE = build_profile("tiny", {})
SPLITS = make_splits(make_task("addition_2digit"), "addition_2digit", PROFILE.data)
TOKENIZER = make_tokenizer()
ENCODED = encode(TOKENIZER, SPLITS.train)


def model(config: ZooModel) -> LlamaForCausalLM:
    return fresh(zoo_config(config, TOKENIZER), generator_for("benchmark"))


def bare_steps(student: LlamaForCausalLM) -> Callable[[], None]:
    """Cross-entropy on the answer tokens, written as one would write it in a notebook: no harness in it."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    student.train()
    labels = torch.full_like(ENCODED.ids, -100)
    for row, positions, tokens in zip(labels, ENCODED.answer_positions, ENCODED.answer_tokens, strict=True):
        kept = tokens != -100
        row[positions[kept]] = tokens[kept]
    generator = torch.Generator().manual_seed(0)

    def steps() -> None:
        for _ in range(STEPS):
            rows = torch.randint(len(ENCODED), (32,), generator=generator)
            logits = student(input_ids=ENCODED.ids[rows], use_cache=False).logits
            loss = F.cross_entropy(logits.flatten(0, 1), labels[rows].flatten(), ignore_index=-100)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            loss.item()

    return steps


class Cached:
    """Teacher signals as the store would hand them out: tensors in memory, computed before."""

    def __init__(self, signals: dict[Signal, torch.Tensor]) -> None:
        self.signals = signals

    def get(self, wanted: list[tuple[str, str]]) -> list[torch.Tensor]:
        return [self.signals[Signal(site)] for site, _ in wanted]


def no_components(model: str, by: str) -> Components:
    """The terms that are timed here read layers."""
    raise NotImplementedError(f"components of the {model} by {by}")


def loop_steps(student: LlamaForCausalLM, terms: list[Term], signals: dict[Signal, torch.Tensor]) -> Callable[[], None]:
    """The shared loop's own steps, probes of gradient norms included, on the same data."""
    folder = Path(tempfile.mkdtemp())
    stores: Any = {"teacher": Cached(signals)}
    problem = TrainingProblem(
        run_id="benchmark", student=student, tokenizer=TOKENIZER, train=SPLITS.train, validation=SPLITS.validation, seed=0,
        student_layers=len(student.model.layers), teacher_layers=0, layer_pairs=(), training=TrainingConfig(epochs=8),
        encoded_train=ENCODED, encoded_validation=encode(TOKENIZER, SPLITS.validation), signal_stores=stores,
        history=History(folder / "history.jsonl"), checkpoint=folder / "checkpoint.pt", progress=lambda *_: None,
        ranked=no_components, worked_out=lambda: (),
    )  # fmt: skip
    loop = Loop(problem, terms)
    sites = [site for term in terms for site in term.student_sites]
    generator = torch.Generator().manual_seed(0)

    def steps() -> None:
        with captured(student, sites) as found:
            for _ in range(STEPS):
                loop._step(torch.randint(len(ENCODED), (32,), generator=generator), found)

    return steps


def compare(sides: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median milliseconds per step of each side, blocks alternating; the first block of each warms up."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for block in range(BLOCKS + 1):
        for name, steps in sides.items():
            began = time.perf_counter()
            steps()
            if block:
                times[name].append(1000 * (time.perf_counter() - began) / STEPS)
    return {name: round(statistics.median(values), 3) for name, values in times.items()}


def main() -> None:
    torch.set_num_threads(1)
    student = PROFILE.student
    assert isinstance(student, ZooModel)
    overhead = compare({"bare": bare_steps(model(student)), "loop": loop_steps(model(student), [CrossEntropy()], {})})

    # Eight pairs need eight layers; teacher rows of width 96 stand in for the store's.
    deep = student.model_copy(update={"layers": 8})
    draw = generator_for("benchmark", "signals")
    signals = {Signal(mlp_out(i)): torch.randn(len(ENCODED), 96, generator=draw) for i in range(8)}
    width = SimpleNamespace(a=ENCODED.answer_tokens.shape[1], v=len(TOKENIZER))
    signals[Signal(LOGITS)] = torch.randn(len(ENCODED), width.a, width.v, generator=draw)
    pairs = tuple((i, i) for i in range(8))
    alignment = compare(
        {
            "finetune": loop_steps(model(deep), [CrossEntropy()], signals),
            "cka_cd": loop_steps(model(deep), [Kl(), CkaAlignment(pairs)], signals),
        }
    )
    save(
        "loop_overhead",
        {
            "loop over bare loop, tiny student, batch 32": {
                "ms per step": overhead, "ratio": round(overhead["loop"] / overhead["bare"], 3)
            },
            "cka_cd over finetune, 8 layers, 8 pairs, cached signals": {
                "ms per step": alignment, "ratio": round(alignment["cka_cd"] / alignment["finetune"], 3)
            },
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
