"""The shared artefacts of a (profile, task): splits, models, impacts, pairing. Found in the store, or made."""

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from cdbench import data, models
from cdbench.api import Components, Example, Solution
from cdbench.circuits.ablation import ablation_impacts
from cdbench.circuits.components import components
from cdbench.circuits.contrasts import Contrasts, make_contrasts
from cdbench.circuits.discovery import Search, discover
from cdbench.circuits.graph import Graph
from cdbench.circuits.pairing import pair_layers
from cdbench.circuits.scores import Scores
from cdbench.config import Profile, ZooModel
from cdbench.discover import make_task, plugin_digest, task_files
from cdbench.errors import RunFailed, UserError
from cdbench.files import json_lines, parse_json_lines, read_json, write_atomic, write_json
from cdbench.generation import solutions
from cdbench.models import Checkpoint, Role
from cdbench.record import Made
from cdbench.seeds import digest, rng_for
from cdbench.store import Store, content_hash, recipe
from cdbench.tokens import encode, prompt_encoder

_CIRCUIT_CODE = ("attribution", "contrasts", "discovery", "forward", "graph", "patching", "scores")


@dataclass(frozen=True)
class Workspace:
    """Everything that the runs of one profile and task share.

    `build` False is the evaluator's view: it takes what is there and never imports a plug-in.
    """

    profile: Profile
    task: str
    store: Store
    progress: Callable[[int, int, str], None]
    build: bool = True

    def _data_key(self, part: str) -> dict[str, object]:
        return {
            "part": part,
            "task": self.task,
            # A held-out set of another length is drawn by another file.
            "plugins": {
                name: plugin_digest(path) for name, path in task_files(self.task, self.profile.data.zoo_tasks).items()
            },
            "config": self.profile.data.model_dump(mode="json"),
            "recipe": recipe("data", "seeds"),
        }

    def _artefact(self, kind: str, key: dict[str, object], build: Callable[[Path], None]) -> Path:
        if self.build:
            return self.store.artefact(kind, key, build)
        return self.store.open(self.store.path(kind, key))

    @cached_property
    def training_data(self) -> Path:
        """train.jsonl, validation.jsonl, leaks.json."""

        def build(folder: Path) -> None:
            splits = data.make_splits(make_task(self.task), self.task, self.profile.data)
            data.write_examples(folder / "train.jsonl", splits.train)
            data.write_examples(folder / "validation.jsonl", splits.validation)
            write_json(folder / "leaks.json", {"test_twins_in_train": splits.leaked, "split": self.profile.data.split})

        return self._artefact("data", self._data_key("train"), build)

    @cached_property
    def pretraining_data(self) -> Path:
        """<task>.jsonl for each task that zoo models are trained on besides the training split."""

        def build(folder: Path) -> None:
            splits = data.make_splits(make_task(self.task), self.task, self.profile.data)
            heldout = [*splits.validation, *splits.test]
            for other in self.profile.data.zoo_tasks:  # nor what they are examined on as tasks of their own
                heldout += data.make_splits(make_task(other), other, self.profile.data).test
            for other in self.profile.data.zoo_tasks:
                examples = data.make_pretraining(make_task(other), other, self.profile.data, heldout)
                data.write_examples(folder / f"{other}.jsonl", examples)

        return self._artefact("data", self._data_key("pretraining"), build)

    @cached_property
    def pretraining(self) -> dict[str, tuple[Example, ...]]:
        """Task -> what zoo models are trained on besides the training split."""
        if not self.profile.data.zoo_tasks:
            return {}
        folder = self.pretraining_data
        return {name: data.read_examples(folder / f"{name}.jsonl") for name in self.profile.data.zoo_tasks}

    @cached_property
    def heldout_data(self) -> Path:
        """test.jsonl and shift_<task>.jsonl. Never opened by the training step."""

        def build(folder: Path) -> None:
            task = make_task(self.task)
            splits = data.make_splits(task, self.task, self.profile.data)
            data.write_examples(folder / "test.jsonl", splits.test)
            seen = [*splits.train, *itertools.chain.from_iterable(self.pretraining.values())]
            for other in type(task).length_shift if self.profile.data.length_shift else ():
                shifted = data.make_length_shift(make_task(other), other, self.profile.data, seen)
                data.write_examples(folder / f"shift_{other}.jsonl", shifted)

        return self._artefact("heldout", self._data_key("heldout"), build)

    @cached_property
    def train_examples(self) -> tuple[Example, ...]:
        """The training split."""
        return data.read_examples(self.training_data / "train.jsonl")

    @cached_property
    def validation_examples(self) -> tuple[Example, ...]:
        """The validation split."""
        return data.read_examples(self.training_data / "validation.jsonl")

    def checkpoint(self, role: Role) -> Checkpoint:
        """The teacher or the base student."""
        config = self.profile.teacher if role == "teacher" else self.profile.student
        if not isinstance(config, ZooModel):
            return models.hub_or_folder(config)
        content = content_hash(self.training_data)
        if self.profile.data.zoo_tasks:
            content = digest([content, content_hash(self.pretraining_data)])
        if not self.build:
            folder = self.store.open(self.store.path("models", models.zoo_key(config, role, content)))
            return Checkpoint(folder, content_hash(folder))

        def read() -> tuple[list[tuple[Example, ...]], tuple[Example, ...]]:
            return [self.train_examples, *self.pretraining.values()], self.validation_examples

        return models.make_zoo_model(config, role, self.store, content, read, self.progress)

    @cached_property
    def teacher(self) -> Checkpoint:
        """The teacher."""
        return self.checkpoint("teacher")

    @cached_property
    def student(self) -> Checkpoint:
        """The student before training."""
        return self.checkpoint("student")

    @property
    def same_architecture(self) -> bool:
        """Whether the teacher's weights would fit the student."""
        return self.student.shape == self.teacher.shape

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer that both models share.

        Raises:
            UserError: the vocabularies differ, so that logits cannot be compared.
        """
        tokenizer, other = self.student.tokenizer(), self.teacher.tokenizer()
        # Added tokens may differ in name: Llama 3.2 renamed some that Llama 3 had reserved.
        words = [set(t.get_vocab().items()) - set(t.get_added_vocab().items()) for t in (tokenizer, other)]
        ends = [(len(t), t.bos_token_id, t.eos_token_id) for t in (tokenizer, other)]
        if words[0] != words[1] or ends[0] != ends[1]:
            raise UserError(
                f"teacher and student have different vocabularies ({len(other)} and {len(tokenizer)} tokens); "
                "logits can be compared between models of one tokenizer only"
            )
        return tokenizer

    @cached_property
    def circuits(self) -> dict[str, Any]:
        """Ablation impacts of both models and the functional pairing, measured on the training split."""
        config = self.profile.circuits

        def build(folder: Path) -> None:
            split = encode(self.tokenizer, self.train_examples[: config.calibration])
            result: dict[str, Any] = {"n": len(split), "config": config.model_dump(mode="json")}
            for role in ("teacher", "student"):
                model = self.checkpoint(role).model(self.profile.device)
                baseline, impacts = ablation_impacts(model, split, config.mean)
                result[role] = {"baseline": baseline, "impacts": impacts}
            pairing = pair_layers(
                result["student"]["impacts"], result["teacher"]["impacts"], config.top_k, config.pairing
            )
            result |= {"pairs": pairing.pairs, "ties": pairing.ties, "shared": pairing.shared}
            write_json(folder / "circuits.json", result)

        key: dict[str, object] = {
            "teacher": self.teacher.content,
            "student": self.student.content,
            "data": content_hash(self.training_data),
            "config": config.model_dump(mode="json"),
            "recipe": recipe("circuits/ablation", "circuits/pairing", "zoo", "tokens", "sites"),
            "device": self.profile.device,
            "threads": self.profile.threads,
        }
        return read_json(self._artefact("circuits", key, build) / "circuits.json", "circuits file")

    @cached_property
    def counterfactuals(self) -> Path:
        """counterfactuals.jsonl: for each training problem another one of the same layout and another answer, or null.

        missing.json counts the problems that have none.
        """

        def build(folder: Path) -> None:
            rng = rng_for("counterfactuals", self.task, self.profile.data.seed)
            found = data.make_counterfactuals(
                self.train_examples, prompt_encoder(self.tokenizer, self.train_examples), rng
            )
            rows = [None if example is None else asdict(example) for example in found]
            write_atomic(folder / "counterfactuals.jsonl", json_lines(rows))
            write_json(folder / "missing.json", {"without": rows.count(None), "of": len(rows)})

        key: dict[str, object] = {
            "data": content_hash(self.training_data),
            "tokenizer": self.student.content,
            "recipe": recipe("data", "tokens", "seeds"),
        }
        return self._artefact("counterfactuals", key, build)

    @cached_property
    def contrasts(self) -> Contrasts | None:
        """Training problems with their counterfactuals, as many as are for calibration; None where no two answers differ."""
        rows = parse_json_lines((self.counterfactuals / "counterfactuals.jsonl").read_text())
        others = [row and data.example_of(row) for row in rows[: self.profile.circuits.calibration]]
        pairs = [(own, other) for own, other in zip(self.train_examples, others, strict=False) if other is not None]
        return make_contrasts(self.tokenizer, pairs) if any(a.answer != b.answer for a, b in pairs) else None

    def components_file(self, by: Literal["attribution", "ablation"]) -> Path:
        """Importance of every node of both models before training, problem by problem; empty without contrasts."""

        def build(folder: Path) -> None:
            found: dict[str, Tensor] = {}
            if self.contrasts is not None:
                split = encode(self.tokenizer, [own for own, _ in self.contrasts.pairs])
                for role in ("teacher", "student"):
                    model = self.checkpoint(role).model(self.profile.device)
                    found[role] = discover(model, self.contrasts, split, Search(by)).rows.contiguous()
            write_atomic(folder / f"{by}.safetensors", save(found))

        key: dict[str, object] = {
            "by": by,
            "teacher": self.teacher.content,
            "student": self.student.content,
            "counterfactuals": content_hash(self.counterfactuals),
            "calibration": self.profile.circuits.calibration,
            "recipe": recipe(*(f"circuits/{name}" for name in _CIRCUIT_CODE), "zoo", "tokens", "sites"),
            "device": self.profile.device,
            "threads": self.profile.threads,
        }
        return self._artefact("circuits", key, build) / f"{by}.safetensors"

    def components(self, role: Role, by: Literal["attribution", "ablation"]) -> Components:
        """Importance of a model's heads and MLPs before training, on the training split.

        Raises:
            RunFailed: no two problems of the task can be contrasted.
        """
        found = load_file(self.components_file(by))
        if not found:
            raise RunFailed(
                f"no problem of '{self.task}' has a counterfactual of the same layout with another answer: heads and MLPs "
                "cannot be ranked"
            )
        rows = found[role]
        checkpoint = self.checkpoint(role)
        graph = Graph(checkpoint.layers, checkpoint.heads, checkpoint.width)
        return components(graph, Scores("node", rows, torch.ones(len(rows), dtype=torch.long)))

    def make(self, name: Made) -> None:
        """Makes a shared artefact that only some methods ask for."""
        _ = self.components_file("ablation") if name == "ablation" else self.solutions

    def made_here(self) -> list[Made]:
        """Which of these had to be made where nobody else will find them."""
        own = self.store.own
        if own == self.store.root:
            return []
        here = {"solutions": "solutions/*", "ablation": "circuits/*/ablation.safetensors"}
        return [name for name in get_args(Made) if any(own.glob(here[name]))]

    @cached_property
    def solutions(self) -> tuple[Solution, ...]:
        """A worked solution of each training problem.

        Raises:
            RunFailed: the task's problems cannot be worked out by columns.
        """

        def build(folder: Path) -> None:
            model = self.teacher.model(self.profile.device)
            try:
                found = solutions(model, self.tokenizer, self.train_examples, self.profile.evaluation_batch)
            except UserError as error:
                raise RunFailed(f"task '{self.task}' has no worked solutions: {error}") from None
            write_atomic(folder / "solutions.jsonl", json_lines(asdict(each) for each in found))

        key: dict[str, object] = {
            "teacher": self.teacher.content,
            "data": content_hash(self.training_data),
            "recipe": recipe("circuits/solutions", "circuits/arithmetic", "generation", "predictions", "tokens"),
            "device": self.profile.device,
            "threads": self.profile.threads,
        }
        rows = parse_json_lines((self._artefact("solutions", key, build) / "solutions.jsonl").read_text())
        return tuple(Solution(**row) for row in rows)

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The functional pairing."""
        return tuple((int(s), int(t)) for s, t in self.circuits["pairs"])

    def inputs(self) -> dict[str, Any]:
        """Content hashes of what the run was given, for the record."""
        leaks = read_json(self.training_data / "leaks.json", "leak count")
        return {
            "teacher": self.teacher.content,
            "student": self.student.content,
            "train": content_hash(self.training_data),
            "test_twins_in_train": leaks["test_twins_in_train"],
            "split": leaks["split"],
            "circuits": self.circuits,
        }
