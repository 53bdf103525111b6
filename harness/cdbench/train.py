"""The one training loop, and the concrete Problem that a method is given.

Laws, each a test: the order of the data depends on (seed, epoch) only; a run that was interrupted and resumed gives the
same weights as one that was not; looking (validation, gradient probes) changes nothing; cached signals equal live ones;
a weighted term without gradient is an error (errata A9).
"""

import json
import math
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cdbench.api import (
    Components,
    Example,
    Outcome,
    Position,
    Problem,
    Signal,
    Solution,
    Source,
    Term,
    TermInputs,
)
from cdbench.circuits.subnetwork import parameter_masks
from cdbench.config import TrainingConfig
from cdbench.errors import RunFailed
from cdbench.files import explained, write_atomic
from cdbench.generation import generate
from cdbench.predictions import score
from cdbench.seeds import generator_for, rng_for
from cdbench.signals import SignalStore
from cdbench.sites import LOGITS, answer_logits, at_last_prompt, captured
from cdbench.tokens import Encoded, encode
from cdbench.zoo import exact_match

Progress = Callable[[int, int, str], None]


_FADED = 1e-3
"""Below this part of the most that a term has weighed, nothing is left of it."""
_FAINT = 1e-6
"""Below this part of the strongest term's, a weighted gradient is none: the update loses it to rounding."""


class History:
    """The run's history, JSON lines: {"step": 3, "time": <ms since 1970>, "loss/kl": 0.5}. Values must be finite."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: list[str] = []

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one line; in memory until `flush`."""
        row = {"step": step, "time": int(time.time() * 1000), **values}
        self._lines.append(json.dumps(row, allow_nan=False))

    def rewind(self, step: int) -> None:
        """Forgets what was written after `step`: a resumed run writes it again."""
        kept = self.path.read_text().splitlines() if self.path.exists() else []
        self._lines = [line for line in kept if json.loads(line)["step"] <= step]

    def flush(self) -> None:
        """Writes all lines, atomically."""
        write_atomic(self.path, "".join(line + "\n" for line in self._lines), "the history")


class _StepInputs(TermInputs):
    """One step's view for the terms: the student's live activations, the signals' rows of this batch."""

    def __init__(
        self, batch: Encoded, rows: Tensor, logits: Tensor, found: dict[str, Tensor], signals: dict[Signal, Tensor]
    ) -> None:
        self._batch, self._rows, self._logits, self._found, self._signals = batch, rows, logits, found, signals

    @property
    def logits(self) -> Tensor:
        return self._logits

    @property
    def answer_tokens(self) -> Tensor:
        return self._batch.answer_tokens

    @property
    def rows(self) -> Tensor:
        return self._rows

    def student(self, site: str, position: Position = "last_prompt") -> Tensor:
        activation = self._found[site]
        return at_last_prompt(activation, self._batch) if position == "last_prompt" else activation

    def teacher(self, signal: Signal, rows: Tensor | None = None) -> Tensor:
        value = self._signals[signal][self._rows if rows is None else rows]
        if signal.position == "all" and signal.site != LOGITS:
            value = value[:, : self._batch.ids.shape[1]]
        return value.to(self._logits.device)


@dataclass
class TrainingProblem(Problem):
    """What a method is given, and the loop behind `fit`."""

    run_id: str
    student: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    train: Sequence[Example]
    validation: Sequence[Example]
    seed: int
    student_layers: int
    teacher_layers: int
    layer_pairs: tuple[tuple[int, int], ...]
    ranked: Callable[[Literal["teacher", "student"], Literal["attribution", "ablation"]], Components]
    worked_out: Callable[[], Sequence[Solution]]
    training: TrainingConfig
    encoded_train: Encoded
    encoded_validation: Encoded
    signal_stores: Mapping[Source, SignalStore]
    history: History
    checkpoint: Path
    progress: Progress
    checkpoint_seconds: float = 30.0
    steps_done: int = field(default=0, init=False)
    """Of all calls of `fit`, one after the other."""
    notes: list[str] = field(default_factory=list, init=False)
    """What whoever reads the result should know."""
    heaviest: dict[str, float] = field(default_factory=dict, init=False)
    """The most that each term on activations has weighed on any step of any `fit`."""

    def pairs(self) -> tuple[tuple[int, int], ...]:
        return self.layer_pairs

    def components(self, model: Literal["teacher", "student"], by: Literal["attribution", "ablation"]) -> Components:
        return self.ranked(model, by)

    def solutions(self) -> Sequence[Solution]:
        return self.worked_out()

    def signal(self, signal: Signal) -> Tensor:
        return self.signal_stores[signal.source].get([(signal.site, signal.position)])[0]

    def generator(self, *scope: str | int) -> torch.Generator:
        return generator_for("run", self.seed, *scope)

    def rng(self, *scope: str | int) -> random.Random:
        return rng_for("run", self.seed, *scope)

    def log(self, step: int, **values: float) -> None:
        self.history.add(step, values)
        self.progress(step, 0, "")

    def fit(self, terms: Sequence[Term], only: Sequence[str] = (), answers: Sequence[str] = ()) -> Outcome:
        if not terms:
            return Outcome()
        split = self._with(answers, terms) if answers else self.encoded_train
        with _subnetwork(self.student, parameter_masks(self.student, only)) as part:
            weights = Loop(self, terms, part, split).run()
        return Outcome(weights=weights)

    def _with(self, answers: Sequence[str], terms: Sequence[Term]) -> Encoded:
        """The training problems with other answers."""
        if len(answers) != len(self.train):
            raise RunFailed(f"fit was given {len(answers)} answers for {len(self.train)} training problems")
        for term in terms:
            if any(signal.position == "all" or signal.site == LOGITS for signal in term.signals):
                raise RunFailed(
                    f"term '{term.name}' reads what a frozen model says at the problems' own answers; with other answers only "
                    "signals at the last prompt token can be read"
                )
        rows = zip(self.train, answers, strict=True)
        return encode(self.tokenizer, [replace(example, answer=answer) for example, answer in rows])


class _Subnetwork:
    """Lets nothing but some entries of some parameters change; all of them where `only` is empty.

    The gradient of the others is 0, so that norms and clipping are the subnetwork's; weight decay would move them all the
    same, and so they are put back after each step.
    """

    def __init__(self, model: LlamaForCausalLM, only: Mapping[str, Tensor]) -> None:
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self._frozen: list[Tensor] = []
        self._hooks: list[Any] = []
        for name, parameter in model.named_parameters() if only else ():
            if name not in only:
                if parameter.requires_grad:
                    self._frozen.append(parameter.requires_grad_(False))
            elif not bool(only[name].all()):
                mask = only[name].to(parameter.device)
                self._parts.append((parameter, mask, parameter.detach().clone()))
                self._hooks.append(parameter.register_hook(lambda gradient, mask=mask: gradient * mask))

    @torch.no_grad()
    def hold(self) -> None:
        """Puts back what is not the subnetwork's."""
        for parameter, mask, before in self._parts:
            parameter.copy_(torch.where(mask, parameter, before))

    def release(self) -> None:
        """Gives the model back as an ordinary one."""
        for hook in self._hooks:
            hook.remove()
        for parameter in self._frozen:
            parameter.requires_grad_(True)


@contextmanager
def _subnetwork(model: LlamaForCausalLM, only: Mapping[str, Tensor]) -> Iterator[_Subnetwork]:
    """The model is an ordinary one again afterwards, also when the training fails."""
    part = _Subnetwork(model, only)
    try:
        yield part
    finally:
        part.release()


class Loop:
    """One training run: AdamW, warm-up, clipping, per-term values and gradient norms, checkpoints."""

    def __init__(
        self,
        problem: TrainingProblem,
        terms: Sequence[Term],
        subnetwork: _Subnetwork | None = None,
        split: Encoded | None = None,
    ) -> None:
        names = [term.name for term in terms]
        if len(set(names)) < len(names):
            raise RunFailed(f"two terms have one name ({', '.join(names)}); give each its own")
        self.problem, self.terms, self.config = problem, terms, problem.training
        self.split = problem.encoded_train if split is None else split
        self.model = problem.student.train()
        self.subnetwork = subnetwork or _Subnetwork(self.model, {})
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.learned = [tensor for term in terms for tensor in term.learned]
        self.optimizer = torch.optim.AdamW(
            [*self.parameters, *self.learned], lr=self.config.lr, weight_decay=self.config.weight_decay, fused=True
        )
        n = len(self.split)
        self.batch_size = min(self.config.batch_size, n)
        self.steps_per_epoch = n // self.batch_size  # the last, short batch is dropped: CKA depends on its size
        self.steps = self.steps_per_epoch * self.config.epochs
        self.signals = self._open_signals()
        self.best: tuple[float, dict[str, Tensor]] | None = None
        self.step = 0
        self.before = problem.steps_done
        """Steps of earlier calls of `fit`: the history counts on from there."""
        self.without_gradient: dict[str, list[int]] = {}
        """Term -> probed steps at which it had a weight and next to no gradient."""
        self.most: dict[str, float] = dict.fromkeys(names, 0.0)
        """Term -> the most that it has weighed at any step."""
        self.faded: dict[str, list[int]] = {}
        """Term -> steps at which next to nothing was left of that."""

    def _open_signals(self) -> dict[Signal, Tensor]:
        wanted = list(dict.fromkeys(signal for term in self.terms for signal in term.signals))
        opened: dict[Signal, Tensor] = {}
        for source in dict.fromkeys(signal.source for signal in wanted):
            of_source = [signal for signal in wanted if signal.source == source]
            values = self.problem.signal_stores[source].get([(signal.site, signal.position) for signal in of_source])
            opened.update(zip(of_source, values, strict=True))
        return opened

    def run(self) -> dict[str, Tensor]:
        """Trains to the end, from a checkpoint if there is one, and returns the selected weights."""
        self._resume()
        saved = time.monotonic()
        sites = [site for term in self.terms for site in term.student_sites]
        with captured(self.model, sites) as found:
            while self.step < self.steps:
                epoch, index = divmod(self.step, self.steps_per_epoch)
                order = torch.randperm(len(self.split), generator=generator_for("order", self.problem.seed, epoch))
                for rows in order.split(self.batch_size)[index : self.steps_per_epoch]:
                    self._step(rows, found)
                self._end_epoch(epoch)
                if self.step < self.steps and time.monotonic() - saved >= self.problem.checkpoint_seconds:
                    self._save()
                    saved = time.monotonic()
        self.model.eval()
        self.problem.steps_done = self.before + self.step
        self.problem.notes += self._spectators()
        heaviest = self.problem.heaviest
        for name in (term.name for term in self.terms if term.student_sites):
            heaviest[name] = max(heaviest.get(name, 0.0), self.most[name])
        chosen = self.best[1] if self.best else self.model.state_dict()
        self.model.load_state_dict(chosen)  # whatever a method does next, it does with what it is given here
        return {name: value.detach().cpu().clone() for name, value in chosen.items()}

    def _step(self, rows: Tensor, found: dict[str, Tensor]) -> None:
        device = self.model.device
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step, self.steps)
        batch = self.split.take(rows).to(device)
        with ExitStack() as stack:
            if self.config.precision == "bfloat16":
                stack.enter_context(torch.autocast(device.type, torch.bfloat16))
            logits = answer_logits(self.model, batch)
        inputs = _StepInputs(batch, rows, logits, found, self.signals)
        probe = self.step % self.config.probe_every == 0
        values: dict[str, Tensor] = {}
        weights = {term.name: term.weight for term in self.terms}  # read once: a schedule may move them
        for term in self.terms:
            self.most[term.name] = max(abs(weights[term.name]), self.most[term.name])
            if self._has_faded(term.name, weights[term.name]):
                self.faded.setdefault(term.name, []).append(self.step + 1)
            with torch.set_grad_enabled(weights[term.name] != 0 or probe):
                values[term.name] = term.loss(inputs)
        logged: dict[str, float] = {}
        if probe:
            logged.update(self._probe(values, weights))
        pulling = (weight * values[name] for name, weight in weights.items() if weight != 0)
        total = sum(pulling, logits.new_zeros(()))
        losses = {f"loss/{name}": value.item() for name, value in values.items()} | {"loss/total": total.item()}
        self._require_finite(losses, rows)
        self.optimizer.zero_grad(set_to_none=True)
        norm = math.nan
        if total.requires_grad:
            total.backward()
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm).item()
            self._require_finite({"gradient": norm}, rows)
            self.optimizer.step()
            self.subnetwork.hold()
            logged["grad/total"] = norm
        self.step += 1
        self.problem.history.add(
            self.before + self.step, losses | logged | {"lr": self.optimizer.param_groups[0]["lr"]}
        )
        self.problem.progress(self.step, self.steps, f"loss {losses['loss/total']:.4f}")

    def _probe(self, values: Mapping[str, Tensor], weights: Mapping[str, float]) -> dict[str, float]:
        """Each term's gradient norm, unweighted. On the first step a weighted term without gradient is an error."""
        norms = {name: self._gradient_norm(value) for name, value in values.items()}
        pulls = {name: abs(weights[name]) * norm for name, norm in norms.items()}
        for name in (name for name, weight in weights.items() if weight != 0):
            if self.step == 0 and norms[name] == 0.0:
                raise RunFailed(
                    f"term '{name}' has weight {weights[name]:g} but no gradient to the student: it is a spectator "
                    "(detached activations, or a target that the student already meets exactly)"
                )
            if pulls[name] <= _FAINT * max(pulls.values()) and not self._has_faded(name, weights[name]):
                self.without_gradient.setdefault(name, []).append(self.step + 1)
        return {f"grad/{name}": norm for name, norm in norms.items()}

    def _has_faded(self, name: str, weight: float) -> bool:
        return abs(weight) < _FADED * self.most[name]

    def _gradient_norm(self, value: Tensor) -> float:
        """Of what a value pulls the student's parameters by."""
        if not value.requires_grad:
            return 0.0
        grads = torch.autograd.grad(value, self.parameters, retain_graph=True, allow_unused=True)
        return math.sqrt(sum(g.double().square().sum().item() for g in grads if g is not None))

    def _spectators(self) -> list[str]:
        """Terms that pulled next to nothing at some steps, or whose weight a schedule has taken away."""
        probes = -(-self.steps // self.config.probe_every)
        weights = {term.name: term.weight for term in self.terms}
        return [
            f"term '{name}' (weight {weights[name]:g}) gave the student next to no gradient at {len(steps)} of {probes} probed "
            f"steps, first at step {steps[0]}"
            for name, steps in self.without_gradient.items()
        ] + [
            f"term '{name}' weighed {self.most[name]:g} at most and less than a thousandth of that on {len(steps)} of "
            f"{self.steps} steps, first on step {steps[0]}"
            for name, steps in self.faded.items()
        ]

    def _require_finite(self, values: Mapping[str, float], rows: Tensor) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                prompts = ", ".join(self.problem.train[int(row)].prompt for row in rows[:3])
                raise RunFailed(
                    f"{name.removeprefix('loss/')} became {value} at step {self.step + 1}, batch of {len(rows)} "
                    f"problems beginning {prompts}; lower the learning rate or the term's weight"
                )

    def _end_epoch(self, epoch: int) -> None:
        self.model.eval()
        accuracy = self._validate().double().mean().item()
        self.model.train()
        self.problem.history.add(self.before + self.step, {"validation/accuracy": accuracy, "epoch": epoch + 1})
        if self.config.selection == "validation" and (self.best is None or accuracy > self.best[0]):
            self.best = accuracy, {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def _validate(self) -> Tensor:
        """Which validation problems the student solves; [n] bool."""
        problem = self.problem
        if self.split is problem.encoded_train:
            return exact_match(self.model, problem.encoded_validation)
        texts = generate(self.model, problem.tokenizer, problem.validation, batch_size=250)
        solved = [score(e.prompt, e.answer, text).correct for e, text in zip(problem.validation, texts, strict=True)]
        return torch.tensor(solved)

    def _save(self) -> None:
        state = {
            "run_id": self.problem.run_id,
            "before": self.before,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "learned": [tensor.detach() for tensor in self.learned],
            "best": self.best,
            "without_gradient": self.without_gradient,
            "most": self.most,
            "faded": self.faded,
        }
        scratch = self.problem.checkpoint.with_suffix(".partial")
        with explained(self.problem.checkpoint, "the checkpoint"):
            torch.save(state, scratch)
            self.problem.history.flush()
            scratch.replace(self.problem.checkpoint)

    def _resume(self) -> None:
        if not self.problem.checkpoint.exists():
            return
        try:
            state = torch.load(self.problem.checkpoint, weights_only=True, map_location=self.model.device)
        except Exception as error:  # torch has no one error for a damaged file
            # Starting over gives the same weights; a checkpoint only saves time.
            warnings.warn(f"checkpoint {self.problem.checkpoint} is damaged ({error}); starting over", stacklevel=2)
            return
        if state["run_id"] != self.problem.run_id:
            raise RunFailed(f"checkpoint {self.problem.checkpoint} belongs to run {state['run_id']}; delete it")
        if state["before"] != self.before:
            return  # of another call of `fit`; this one gives the same weights again
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for tensor, before in zip(self.learned, state["learned"], strict=True):
            tensor.data.copy_(before)
        self.step, self.best = state["step"], state["best"]
        self.without_gradient = state["without_gradient"]
        self.most, self.faded = state["most"], state["faded"]
        self.problem.history.rewind(self.before + self.step)


def learning_rate(config: TrainingConfig, step: int, steps: int) -> float:
    """Linear warm-up, then constant, or linear or cosine decay to 0 at the last step. `step` counts from 0."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    rest = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    if config.schedule == "linear":
        return config.lr * (1 - rest)
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * rest))
    return config.lr
