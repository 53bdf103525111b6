"""A circuit on disk: a folder with circuit.json (what it is, for people too) and scores.safetensors (every row of scores)."""

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from cdbench.circuits.arithmetic import Kind
from cdbench.circuits.discovery import By
from cdbench.circuits.graph import Graph, Level
from cdbench.circuits.scores import Scores
from cdbench.config import Closed, explain
from cdbench.errors import UserError, first_line
from cdbench.files import read_json, sha256, write_atomic, write_json

CIRCUIT, SCORES = "circuit.json", "scores.safetensors"
Source = Literal["task", "mib", "mib-subtraction", "mib-generated", "mib-generated-subtraction"]
_NAMED = {
    "mib": "MIB's additions",
    "mib-subtraction": "MIB's subtractions",
    "mib-generated": "additions in MIB's words",
    "mib-generated-subtraction": "subtractions in MIB's words",
}


class Subject(Closed):
    """The model that the circuit is of."""

    name: str
    """As it was named on the command line."""
    profile: str
    content: str
    """Hash of its weights, configuration and tokenizer."""
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    width: int = Field(ge=1)

    @property
    def graph(self) -> Graph:
        """Its graph."""
        return Graph(self.layers, self.heads, self.width)


class Problems(Closed):
    """What it was found on."""

    task: str
    source: Source
    counterfactual: Kind
    revision: str | None = None
    """The commit of MIB's data."""
    problems: int = Field(ge=0)
    prompts: int | None = None
    """How many prompts ask them, where each is asked in all wordings; None: each in one."""
    without_counterfactual: int = Field(ge=0)
    """How many were dropped because nothing of the same layout differs so."""
    without_contrast: int = Field(ge=0)
    """How many were dropped because both answers are equal."""

    @property
    def drawn(self) -> int:
        """How many problems were asked for, or all there were: those it was found on, and those that were dropped."""
        return self.problems + self.without_counterfactual + self.without_contrast

    @property
    def named(self) -> str:
        """What the problems are, for people: the task's own, or others in its place."""
        return _NAMED.get(self.source, self.task)


class Item(Closed):
    """One of the items with the largest |score|, with what attribution and exact patching say of it."""

    name: str
    score: float
    low: float | None = None
    high: float | None = None
    """95 % over problems; None where there are too few to say."""
    attribution: float | None = None
    exact: float | None = None


class SavedCircuit(Closed):
    """circuit.json. Positive scores are helpful (errata C1)."""

    schema_version: Literal[1] = 1
    cdbench: str
    model: Subject
    data: Problems
    by: By | Literal["import"]
    level: Level
    steps: int
    metric_clean: float | None
    """Mean logit difference correct − counterfactual of the model."""
    metric_corrupt: float | None
    """The same with the counterfactual prompt."""
    stability: float | None
    """Mean Spearman correlation of the scores of two halves of the problems."""
    draws: int = 0
    """How often the counterfactuals were drawn anew."""
    stability_over_draws: float | None = None
    """Mean Spearman correlation of the scores under two draws of the counterfactuals; None where nothing was drawn anew."""
    spearman_with_exact: float | None
    same_sign_as_exact: int | None
    top: list[Item]
    scores: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of scores.safetensors."""


def write(folder: Path, table: dict[str, object], scores: Scores) -> SavedCircuit:
    """Writes a circuit; `table` is all of SavedCircuit but the hash."""
    tensors = {"rows": scores.rows.float().contiguous(), "sizes": scores.sizes}
    write_atomic(folder / SCORES, save(tensors), "the circuit")
    circuit = SavedCircuit.model_validate({**table, "scores": sha256(folder / SCORES)})
    write_json(folder / CIRCUIT, circuit.model_dump(mode="json"), "the circuit")
    return circuit


def read(folder: Path) -> tuple[SavedCircuit, Scores]:
    """Reads a circuit.

    Raises:
        UserError: there is none, it is damaged, or its scores are not those of its model, or not finite.
    """
    if not (folder / CIRCUIT).is_file():
        raise UserError(f"{folder} is no circuit: it holds no {CIRCUIT} (cdbench circuit discover makes one)")
    try:
        circuit = SavedCircuit.model_validate(read_json(folder / CIRCUIT, "circuit"))
    except ValidationError as error:
        raise explain(error, str(folder / CIRCUIT)) from None
    path = folder / SCORES
    try:
        if sha256(path) != circuit.scores:
            raise UserError(f"{path} is not the file that {CIRCUIT} names; it was cut short or altered")
        tensors = load_file(path)
        scores = Scores(circuit.level, tensors["rows"], tensors["sizes"])
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from None
    expected = circuit.model.graph.shape(circuit.level)
    if tuple(scores.rows.shape[1:]) != expected or not len(scores.rows):
        raise UserError(
            f"{path} holds rows of shape {tuple(scores.rows.shape)}; expected [rows, {', '.join(map(str, expected))}]"
        )
    if tuple(scores.sizes.shape) != (len(scores.rows),) or not bool((scores.sizes >= 1).all()):
        raise UserError(
            f"{path}: sizes must say of how many prompts, 1 or more, each of the {len(scores.rows)} rows is the mean"
        )
    require_finite(scores.rows, path)
    return circuit, scores


def require_finite(rows: Tensor, where: object) -> None:
    """Checks that every score is a number.

    Raises:
        UserError: some are NaN or infinite.
    """
    bad = int((~torch.isfinite(rows)).sum())
    if bad:
        raise UserError(f"{where}: {bad} of {rows.numel()} scores are NaN or infinite; nothing can be ranked by them")
