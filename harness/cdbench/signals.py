"""What a frozen model computes on a split, once, memory-mapped, shared by all runs."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from cdbench.api import Position
from cdbench.errors import UserError
from cdbench.sites import LOGITS, answer_logits, at_last_prompt, captured, mlp_out
from cdbench.store import MANIFEST, Store, recipe
from cdbench.tokens import Encoded

_BATCH = 250
_DTYPES = {"float32": np.float32, "float16": np.float16}
SiteAt = tuple[str, Position]


@torch.no_grad()
def compute_signals(model: LlamaForCausalLM, batch: Encoded, wanted: Sequence[SiteAt]) -> dict[SiteAt, Tensor]:
    """The signals of one batch, live: logits [b, a, v], last prompt [b, width], all positions [b, t, width]."""
    with captured(model, [site for site, _ in wanted]) as found:
        logits = answer_logits(model, batch)
    result: dict[SiteAt, Tensor] = {}
    for site, position in wanted:
        if site == LOGITS:
            result[site, position] = logits
        elif position == "last_prompt":
            result[site, position] = at_last_prompt(found[site], batch).float()
        else:
            result[site, position] = found[site].float()
    return result


def signals_of(model: LlamaForCausalLM, split: Encoded, wanted: Sequence[SiteAt]) -> dict[SiteAt, Tensor]:
    """The signals of a whole split, [n, ...] each, computed now."""
    parts: dict[SiteAt, list[Tensor]] = {which: [] for which in wanted}
    for rows in torch.arange(len(split)).split(_BATCH):
        # Not cut to the batch's longest: signals at all positions must have one width over all batches.
        for which, value in compute_signals(model, split.select(rows).to(model.device), wanted).items():
            parts[which].append(value.cpu())
    return {which: torch.cat(values) for which, values in parts.items()}


def last_prompt_mlp(layer: int) -> SiteAt:
    """A layer's MLP output at the last prompt token: what every reported CKA compares."""
    return mlp_out(layer), "last_prompt"


def require_samples(split: Encoded, what: str) -> None:
    """Checks that the last prompt tokens of a split are independent samples, as CKA assumes: one row a prompt, each once.

    Raises:
        UserError: a row that would be read elsewhere than at its last prompt token, or two problems with one prompt.
    """
    late = (split.last_prompt != split.answer_positions[:, 0]).nonzero().flatten().tolist()
    if late:
        where = int(split.last_prompt[late[0]])
        raise UserError(f"problem {late[0]} of {what} is read at position {where}, not its last prompt token")
    after = torch.arange(split.ids.shape[1], device=split.ids.device)[None] > split.last_prompt[:, None]
    prompts = split.ids.masked_fill(after, -1)
    _, group, counts = torch.unique(prompts, dim=0, return_inverse=True, return_counts=True)
    repeated = (counts > 1).nonzero().flatten().tolist()
    if repeated:
        one, two, *_ = (group == repeated[0]).nonzero().flatten().tolist()
        raise UserError(f"problems {one} and {two} of {what} have the same prompt: CKA would count one sample twice")


class SignalStore:
    """Signals of one frozen model on one encoded split.

    The model is loaded only when something is missing from the store, and then all that is missing is computed in one
    pass.
    """

    def __init__(
        self,
        store: Store,
        identity: Mapping[str, object],
        model: Callable[[], LlamaForCausalLM],
        split: Encoded,
        dtype: str,
        kind: Literal["signals", "heldout-signals"] = "signals",
    ) -> None:
        self._store, self._kind = store, kind
        self._identity = {**identity, "dtype": dtype, "recipe": recipe("signals", "sites", "tokens", "zoo")}
        self._model = model
        self._split = split
        self._dtype = _DTYPES[dtype]
        self._open: dict[SiteAt, Tensor] = {}
        self.made: list[SiteAt] = []
        """What was not in the store and has been computed."""

    def get(self, wanted: Sequence[SiteAt]) -> list[Tensor]:
        """The signals, [n, ...] each, read-only, mapped into memory."""
        absent = [w for w in dict.fromkeys(wanted) if w not in self._open]
        computed: dict[SiteAt, Tensor] = {}

        def build(which: SiteAt, folder: Path) -> None:
            if which not in computed:
                there = [w for w in absent if not (self._store.path(self._kind, self._key(w)) / MANIFEST).exists()]
                computed.update(signals_of(self._model(), self._split, there))
            self.made.append(which)
            np.save(folder / "signal.npy", computed[which].numpy().astype(self._dtype))

        for which in absent:
            folder = self._store.artefact(self._kind, self._key(which), partial(build, which))
            # Copy-on-write: torch wants a writable array, and no write reaches the file.
            self._open[which] = torch.from_numpy(np.load(folder / "signal.npy", mmap_mode="c"))
        return [self._open[w] for w in wanted]

    def _key(self, which: SiteAt) -> dict[str, object]:
        return {**self._identity, "site": which[0], "position": which[1]}
