"""MIB's arithmetic data (Mueller et al. 2025), from the hub or made in their schema: problems and their counterfactuals."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from cdbench.api import Example
from cdbench.circuits.arithmetic import KINDS, Kind, Operator, alternatives, solve
from cdbench.errors import EnvironmentLacks, UserError
from cdbench.seeds import seed_for

_COMMIT = re.compile(r"[0-9a-f]{40}")
TEMPLATES: Mapping[Operator, str] = {"+": "The sum of {x} and {y} is ", "-": "The difference between {x} and {y} is "}


@dataclass(frozen=True)
class Published:
    """Arithmetic data of MIB on the hub: a file a split, `train.jsonl`, `validation.jsonl`, `test.jsonl`.

    `revision` is the commit that they are pinned to, or as much of its beginning as the hub's page shows.
    """

    repo: str
    revision: str

    def at(self, revision: str | None) -> str:
        """The commit to read, 40 hex digits: the one asked for, else the pinned one.

        Raises:
            EnvironmentLacks: of the pinned one the beginning is known, and the local cache has not one commit that begins so.
            UserError: what is asked for is no commit.
        """
        if revision is None:
            return self.revision if _COMMIT.fullmatch(self.revision) else self._whole()
        if not _COMMIT.fullmatch(revision):
            raise UserError(f"--revision {revision}: a commit of {self.repo} is expected, 40 hex digits")
        return revision

    def _whole(self) -> str:
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        cache = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self.repo, repo_type="dataset") / "snapshots"
        known = [path.name for path in cache.glob(f"{self.revision}*") if _COMMIT.fullmatch(path.name)]
        if len(known) != 1:
            raise EnvironmentLacks(
                f"MIB's data ({self.repo} at the commit that begins with {self.revision}) are not in the Hugging Face cache: "
                f"take all 40 digits from https://huggingface.co/datasets/{self.repo}/commits/main, then "
                f"hf download {self.repo} --repo-type dataset --revision COMMIT"
            )
        return known[0]


PUBLISHED = {
    "mib": Published("mib-bench/arithmetic_addition", "d56d68b7b1d8f9c7e9a262ec1f89331ed52c7516"),
    # The commit that the hub's page of its files names: "fix indexing, add operand info, downsize test set", as the additions'.
    "mib-subtraction": Published("mib-bench/arithmetic_subtraction", "6b39e17"),
}


def generate(rng: Random, n: int, split: str = "train", op: Operator = "+") -> Iterator[dict[str, Any]]:
    """`n` rows of two-digit sums, or differences that are not negative, in the schema of MIB's arithmetic data.

    Not MIB's own rows: those are on the hub (`load`). Operands for which a kind has no counterfactual are passed over; a borrow
    out of the tens would make a difference negative, so no difference has one of that kind, and the field is null. One
    unordered pair of operands in four is of the "test" split, the others of the "train" split. No problem comes twice, nor its
    twin, in one split or in both (errata A11); so there are fewer rows where `n` is more than there are problems.
    """
    template, made = TEMPLATES[op], 0

    def turned(a: int, b: int) -> tuple[int, int]:
        first, second = (b, a) if rng.random() < 0.5 else (a, b)
        return (first, second) if op == "+" else (max(a, b), min(a, b))

    problems = [(a, b) for a in range(10, 100) for b in range(a, 100)]
    rng.shuffle(problems)
    for low, high in problems:
        if made == n:
            return
        if (seed_for("mib-split", low, high) % 4 == 0) != (split == "test"):
            continue
        a, b = turned(low, high)
        example = Example(template.format(x=a, y=b), str(solve(a, b, op)), (a, b))
        kinds = {
            kind: [pair for pair in alternatives(example, kind) if solve(*pair, op) >= 0]
            for kind in KINDS
            if kind != "random" and (kind, op) != ("tens_carry", "-")
        }
        if not all(kinds.values()):
            continue
        others: dict[Kind, tuple[int, int] | None] = {"random": turned(rng.randint(10, 99), rng.randint(10, 99))}
        others |= {kind: rng.choice(kinds[kind]) if kind in kinds else None for kind in KINDS if kind != "random"}
        yield {
            "idx": made,
            "template": template,
            "prompt": example.prompt,
            "label": example.answer,
            "operator": op,
            "num_digit": 2,
            "operand1": a,
            "operand2": b,
        } | {
            f"{kind}_counterfactual": pair
            and {
                "prompt": template.format(x=pair[0], y=pair[1]),
                "label": solve(*pair, op),
                "operand1": pair[0],
                "operand2": pair[1],
            }
            for kind, pair in others.items()
        }
        made += 1


def pairs_of(rows: Iterator[Mapping[str, Any]], kind: Kind) -> tuple[list[tuple[Example, Example]], int]:
    """Rows in MIB's schema -> problems with the counterfactual of one kind, and how many rows have none.

    Raises:
        UserError: a row lacks a field, or holds no number where one is expected.
    """
    found, without = [], 0
    for number, row in enumerate(rows):
        try:
            other = row[f"{kind}_counterfactual"]
            if other is None:
                without += 1
                continue
            first, second = ((int(r["operand1"]), int(r["operand2"])) for r in (row, other))
            pair = (
                Example(row["prompt"], str(row["label"]), first),
                Example(other["prompt"], str(other["label"]), second),
            )
        except KeyError as error:
            raise UserError(f"row {number} of the MIB data lacks {error}; expected MIB's arithmetic schema") from None
        except (TypeError, ValueError) as error:
            raise UserError(f"row {number} of the MIB data does not fit MIB's arithmetic schema: {error}") from None
        found.append(pair)
    return found, without


def load(published: Published, split: str, revision: str | None = None) -> Iterator[dict[str, Any]]:
    """Rows of MIB's data at a commit, the pinned one if none is said, from the local Hugging Face cache. Asks no server.

    Raises:
        EnvironmentLacks: they are not in the cache.
        UserError: what is asked for is no commit; no such split, or a line that is no row.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repo, commit = published.repo, published.at(revision)
    try:
        folder = Path(snapshot_download(repo, revision=commit, repo_type="dataset", local_files_only=True))
    except LocalEntryNotFoundError:
        raise EnvironmentLacks(
            f"MIB's data ({repo} at revision {commit[:12]}) are not in the Hugging Face cache: "
            f"hf download {repo} --repo-type dataset --revision {commit}"
        ) from None
    path = folder / f"{split}.jsonl"
    if not path.is_file():
        splits = sorted(found.stem for found in folder.glob("*.jsonl"))
        raise UserError(f"{repo} has no split '{split}'; it has {', '.join(splits) or 'no .jsonl file'}")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number}: no JSON ({error})") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number}: a {type(row).__name__}, a table is expected")
            yield row
