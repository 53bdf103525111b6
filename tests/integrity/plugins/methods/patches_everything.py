"""Replaces the evaluator, torch.save, safetensors and lm-eval where it runs."""

import contextlib
import importlib
from dataclasses import dataclass

from cdbench.api import Method, Outcome, Problem

FUNCTIONS = (
    "predict", "generate", "score", "count", "save", "simple_evaluate", "evaluate_run", "judge_circuit", "perplexity",
    "compare_representations",
)  # fmt: skip


@dataclass(frozen=True)
class PatchesEverything(Method):
    def run(self, problem: Problem) -> Outcome:
        modules = (
            "cdbench.execute",
            "cdbench.evaluate",
            "cdbench.judge",
            "cdbench.predictions",
            "cdbench.scoring",
            "torch",
            "safetensors.torch",
            "lm_eval",
        )
        for name in modules:
            with contextlib.suppress(ImportError):
                module = importlib.import_module(name)
                for function in FUNCTIONS:
                    if hasattr(module, function):
                        setattr(module, function, lambda *args, **kwargs: 1.0)
        return Outcome()
