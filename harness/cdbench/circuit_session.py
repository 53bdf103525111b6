"""What the circuit commands work on: a model, named in one of five ways, and pairs of problems."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cdbench import data, record
from cdbench.api import Example
from cdbench.circuits import mib_data
from cdbench.circuits.arithmetic import Kind, make_pairs
from cdbench.circuits.contrasts import Contrasts, Pair, by_operands, make_contrasts
from cdbench.circuits.graph import Graph
from cdbench.circuits.saved import Problems, Source, Subject
from cdbench.config import TEACHER, FolderModel, HubModel, Profile, build_profile
from cdbench.errors import EnvironmentLacks, UserError
from cdbench.evaluate import load_student
from cdbench.files import sha256
from cdbench.models import Checkpoint, hub_or_folder, prepare
from cdbench.plan import Places
from cdbench.requirements import gpu_missing, hub_main
from cdbench.seeds import digest, rng_for
from cdbench.store import Store
from cdbench.tokens import Encoded, encode, prompt_encoder
from cdbench.workspace import Workspace
from cdbench.zoo import Progress

Wordings = Literal["first", "all"]
_RUN = re.compile(r"[0-9a-f]{16}")
_HUB = re.compile(r"([\w.-]+/[\w.-]+)(?:@([0-9a-f]{40}))?")


@dataclass(frozen=True)
class Data:
    """Which problems, with which counterfactuals; of MIB's data at which commit, the pinned one where none is said.

    MIB's files ask each problem in several wordings: the first one of each is taken, or all of them.
    """

    source: Source
    counterfactual: Kind = "random"
    revision: str | None = None
    wordings: Wordings = "first"

    def __post_init__(self) -> None:
        """Raises UserError where a commit or all wordings are said of what has none, EnvironmentLacks where it is not cached."""
        if self.wordings == "all" and self.source not in mib_data.PUBLISHED:
            raise UserError("--wordings all: only MIB's data on the hub ask a problem in several wordings (--data mib)")
        if self.source in mib_data.PUBLISHED:
            mib_data.PUBLISHED[self.source].at(self.revision)
        elif self.revision is not None:
            raise UserError(f"--revision {self.revision}: only MIB's data on the hub have one (--data mib)")

    @property
    def commit(self) -> str | None:
        """The commit that is read."""
        return mib_data.PUBLISHED[self.source].at(self.revision) if self.source in mib_data.PUBLISHED else None

    def mib_pairs(self, split: str, n: int) -> tuple[list[Pair], list[int]]:
        """MIB's first `n` problems with their counterfactuals, from the cache or made in their schema: pairs, and how many
        prompts each problem has, with a counterfactual or without. Wordings of one problem stand together.
        """
        if self.source in mib_data.PUBLISHED:
            rows = mib_data.load(mib_data.PUBLISHED[self.source], split, self.revision)
        else:
            rows = mib_data.generate(
                rng_for("mib", split), n, split, "-" if self.source.endswith("subtraction") else "+"
            )
        found = _by_problem(rows, n, every=self.wordings == "all")
        return mib_data.pairs_of(chain.from_iterable(found), self.counterfactual)[0], [len(each) for each in found]


def _by_problem(rows: Iterator[dict[str, Any]], n: int, *, every: bool) -> list[list[dict[str, Any]]]:
    """The rows of the first `n` pairs of operands, in whichever order they stand; the first row of each, or every one."""
    found: dict[frozenset[object], list[dict[str, Any]]] = {}
    for row in rows:
        problem = frozenset(_number(row.get(operand)) for operand in ("operand1", "operand2"))
        if problem in found:
            found[problem] += [row] if every else []
        elif len(found) < n:
            found[problem] = [row]
        elif not every:
            break
    return list(found.values())


def _number(operand: Any) -> object:
    """As `mib_data.pairs_of` reads it; what is no number it refuses later."""
    try:
        return int(operand)
    except (TypeError, ValueError):
        return operand if isinstance(operand, str) else repr(operand)


def _problems(pairs: Sequence[Pair]) -> int:
    """How many pairs of operands there are, in whichever order they stand."""
    return len({frozenset(clean.operands) for clean, _ in pairs})


@dataclass(frozen=True)
class Studied:
    """A model under study and the problems of a task, under a profile.

    `name` is "teacher", "student" (of the profile), a run's id (its trained student), a folder in Hugging Face format, or
    owner/name[@revision] on the hub (without a revision: what the local cache has as main, and then named by its commit).
    It runs where `asked_device` says, else where the profile does.
    """

    name: str
    profile_name: str
    task: str
    where: Places
    progress: Progress
    asked_device: Literal["cpu", "cuda"] | None = None

    @cached_property
    def profile(self) -> Profile:
        """The profile; of a run its own."""
        return self._run.spec.profile if self._run else build_profile(self.profile_name, {})

    @cached_property
    def _run(self) -> record.Record | None:
        if not _RUN.fullmatch(self.name):
            return None
        done = record.read(self.where.run(self.name))
        if done.metrics is None:
            raise UserError(f"run {self.name} ({done.spec.label}) has no result: {done.status}, {done.error}")
        return done

    @property
    def is_run(self) -> bool:
        """Whether the model is a run's student."""
        return self._run is not None

    @cached_property
    def workspace(self) -> Workspace:
        """The task's splits and the profile's models, made if they are not there."""
        return Workspace(self.profile, self._task, Store(self.where.store), self.progress)

    @property
    def _task(self) -> str:
        """The task; of a run its own."""
        return self._run.spec.task if self._run else self.task

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        if self.name == "teacher" or (self._run and self._run.spec.method == TEACHER):
            return self.workspace.teacher
        if self._run or self.name == "student":
            return self.workspace.student
        if Path(self.name).expanduser().is_dir():
            return hub_or_folder(FolderModel(path=self.name))
        if self._on_hub:
            return hub_or_folder(self._on_hub)
        raise UserError(
            f"no model '{self.name}': write teacher, student, the id of a run (cdbench list runs), a folder in Hugging Face "
            "format, or owner/name[@revision] on the hub (40 hex digits)"
        )

    @cached_property
    def _on_hub(self) -> HubModel | None:
        match = _HUB.fullmatch(self.name)
        return HubModel(repo=match[1], revision=match[2] or hub_main(match[1])) if match else None

    @property
    def _weights(self) -> Path | None:
        """A run's trained student; None where the run left the student as it was, and for all other models."""
        if self._run is None:
            return None
        folder, name = self.where.run(self.name), "student.safetensors"
        if name in self._run.artefacts and name in record.damaged_artefacts(folder, self._run):
            raise UserError(f"{folder / name} is missing or was altered since its record was written")
        return folder / name if (folder / name).exists() else None

    def start(self) -> None:
        """Readies this process as the profile wants it, and loads the model.

        How much memory a GPU must have no profile says: its figure is for training its own two models.

        Raises:
            EnvironmentLacks: there is no GPU where one is asked for, or the model is not in the hub's cache.
        """
        if self.device == "cuda" and (lack := gpu_missing()):
            raise EnvironmentLacks(
                f"{'--device cuda' if self.asked_device else f'profile {self.profile.name}'} needs {lack}"
            )
        prepare(self.profile.model_copy(update={"device": self.device}))
        _ = self.model

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Where the model runs."""
        return self.asked_device or self.profile.device

    @cached_property
    def model(self) -> LlamaForCausalLM:
        """The model, in eval mode."""
        model = self._checkpoint.model(self.device)
        model = load_student(model, self._weights) if self._weights else model
        for name, value in model.named_parameters():
            if not bool(value.isfinite().all()):
                raise UserError(
                    f"{self.name}: {name} has values that are not finite; nothing can be said of such a model"
                )
        return model

    @cached_property
    def content(self) -> str:
        """Hash of everything that makes the model what it is."""
        if self._weights is None:
            return self._checkpoint.content
        return digest({"student": self._checkpoint.content, "weights": sha256(self._weights)})

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Its tokenizer.

        Raises:
            UserError: it has tokens that the model does not embed.
        """
        tokenizer = self._checkpoint.tokenizer()
        if len(tokenizer) > self.model.config.vocab_size:
            raise UserError(
                f"the tokenizer of {self.name} has {len(tokenizer)} tokens, the model embeds {self.model.config.vocab_size}; "
                "they do not belong together"
            )
        return tokenizer

    @property
    def subject(self) -> Subject:
        """What a saved circuit says of its model."""
        graph = Graph.of(self.model)
        return Subject(
            name=self.lasting_name, profile=self._lasting_profile, content=self.content,
            layers=graph.layers, heads=graph.heads, width=graph.width,
        )  # fmt: skip

    @property
    def lasting_name(self) -> str:
        """Its name from any folder."""
        path = Path(self.name).expanduser()
        if self._checkpoint.folder == path.resolve():
            return str(path.resolve())
        return f"{self._on_hub.repo}@{self._on_hub.revision}" if self._on_hub else self.name

    @property
    def _lasting_profile(self) -> str:
        if self._run:
            return self._run.spec.profile.name
        path = Path(self.profile_name).expanduser()
        return str(path.resolve()) if path.suffix == ".toml" else self.profile_name

    def examples(self, split: str, n: int) -> tuple[Example, ...]:
        """The first `n` problems of the task's training ("train") or held-out ("test") split."""
        if split == "train":
            return self.workspace.train_examples[:n]
        return data.read_examples(self.workspace.heldout_data / "test.jsonl")[:n]

    def encoded(self, examples: Sequence[Example]) -> Encoded:
        """Problems as tokens."""
        return encode(self.tokenizer, examples)

    def contrasts(self, wanted: Data, split: str, n: int, draw: int = 0) -> tuple[Contrasts, Problems, int | None]:
        """At most `n` problems with counterfactuals, from the task, MIB's data, or data made like MIB's.

        `draw` counts draws of the counterfactuals of a task's problems; MIB's stand beside theirs. The last is in how many
        prompts they are asked, those that were dropped among them, where each is in all wordings; else None.

        Raises:
            UserError: there is no contrast, or the tokenizer does not fit.
            EnvironmentLacks: MIB's data are not in the cache.
        """
        kind = wanted.counterfactual
        if wanted.source == "task":
            examples = self.examples(split, n)
            rng = rng_for("circuit", self.workspace.task, kind, split, *([draw] if draw else []))
            pairs, _ = make_pairs(examples, kind, prompt_encoder(self.tokenizer, examples), rng)
            prompts = [1] * len(examples)
            if not pairs:
                raise UserError(
                    f"none of {len(examples)} problems of '{self.workspace.task}' has a '{kind}' counterfactual"
                )
        else:
            pairs, prompts = wanted.mib_pairs(split, n)
        pairs = self._of_one_layout(pairs)
        contrasts, asked, every = make_contrasts(self.tokenizer, pairs), len(pairs), wanted.wordings == "all"
        if every:
            contrasts, asked = by_operands(contrasts), _problems(pairs)
        problems = int(contrasts.problems[-1]) + 1
        told = Problems(
            task=self._task, source=wanted.source, counterfactual=kind, revision=wanted.commit, problems=problems,
            prompts=len(contrasts) if every else None, without_counterfactual=len(prompts) - asked,
            without_contrast=asked - problems,
        )  # fmt: skip
        return contrasts, told, sum(prompts) if every else None

    def prompts(self, wanted: Data, n: int) -> tuple[Example, ...]:
        """At most `n` held-out problems, none twice, each in one wording.

        Raises:
            EnvironmentLacks: MIB's data are not in the cache.
        """
        if wanted.source == "task":
            return self.examples("test", n)
        pairs, _ = replace(wanted, wordings="first").mib_pairs("test", n)
        return tuple({clean.prompt: clean for clean, _ in pairs}.values())

    def _of_one_layout(self, pairs: list[Pair]) -> list[Pair]:
        """Those of whose two problems have one layout."""
        encoded = prompt_encoder(self.tokenizer, [example for pair in pairs for example in pair])
        return [pair for pair in pairs if data.layout(pair[0], encoded) == data.layout(pair[1], encoded)]
