"""Exact linear CKA over any number of batches, in memory that does not grow with them; mergeable.

One representation is kept as z_i = [u_i, |u_i|², 1], u_i = x_i − c for a provisional centre c, a pair as M = Σ_i z_i z'_iᵀ,
[d1 + 2, d2 + 2], in float64: products of features, sums, norms and n in one matrix. A change of centre or of scale is a linear
map of z, so rescaling, merging and moving to the true mean all act on M alone: no sample is read again, and a large common
offset never cancels. At the mean,

    biased     ‖C‖²                      C = Σ u u'ᵀ, the block [:d1, :d2]
    debiased   ‖C‖² − n/(n−2) Σ|u|²|u'|² + Σ|u|² Σ|u'|² / ((n−1)(n−2))     the last two rows and columns
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cdbench.similarity.inputs import (
    WIDE,
    constant_columns,
    exponent_of,
    require_debiased_spread,
    require_enough,
    require_layers,
    require_varying,
    scaled,
)

_SLACK = 64
"""A batch may exceed the first one by 2^64 before the state is rescaled: eighth powers still fit in float64."""
Name = tuple[str, int]
"""("xs", 0): the first layer of x."""


@dataclass(frozen=True)
class _Frame:
    """In what terms a layer is kept: u = 2^-exponent · x − centre. No exponent as long as all that was seen is zero."""

    centre: Tensor
    exponent: int | None
    dtype: torch.dtype

    def lifted(self, x: Tensor) -> Tensor:
        """z of a batch, [b, d + 2]."""
        shifted = scaled(x.to(WIDE), self.exponent) - self.centre
        norms = shifted.square().sum(1, keepdim=True)
        return torch.cat([shifted, norms, torch.ones_like(norms)], dim=1)


class StreamingCKA:
    """Linear CKA of all layer pairs, fed batch by batch.

        stream = StreamingCKA()
        for xs, ys in batches:          # lists of [b, d], the same samples in both
            stream.update(xs, ys)
        stream.compute(debiased=True)   # [layers of x, layers of y]

    The value is that of all samples at once, up to float64 rounding, wherever the batches begin and end. Several workers
    `merge`; `state_dict` and `load_state_dict` save and load. Memory is 8 bytes · Σ d1·d2 over all pairs and over each layer
    with itself, whatever the number of samples: for few samples of wide layers `cka_matrix` needs less.

    Attributes:
        n: samples seen.
        max_bytes: the first update raises when the state would be larger.
    """

    def __init__(self, *, max_bytes: int = 8 << 30) -> None:
        self.n = 0
        self.max_bytes = max_bytes
        self._frames: dict[Name, _Frame] = {}
        self._moments: dict[tuple[Name, Name], Tensor] = {}
        self._centred_at = 1
        """How many samples there were when the layers were last centred."""

    @torch.inference_mode(False)  # the state outlives an inference_mode that a batch comes in
    @torch.no_grad()
    def update(self, xs: Sequence[Tensor], ys: Sequence[Tensor]) -> None:
        """Adds a batch; a batch that raises adds nothing.

        Args:
            xs: layers of one model, [b, d] each; b may differ from batch to batch, down to 1.
            ys: layers of the other, of the same samples.

        Raises:
            ValueError: as `cka_matrix` (but for the number of samples); other layers than before; a state above `max_bytes`.
        """
        require_layers(xs, ys)
        batch = {(side, i): v for side, values in (("xs", xs), ("ys", ys)) for i, v in enumerate(values)}
        exponents = {name: exponent_of(value, _text(name)) for name, value in batch.items()}
        if not self._frames:
            self._begin(batch, exponents)
        self._require_known({name: value.shape[1] for name, value in batch.items()})
        for name, value in batch.items():
            frame = self._frames[name]
            self._frames[name] = replace(frame, dtype=torch.promote_types(frame.dtype, value.dtype))
            if _exceeds(exponents[name], frame.exponent):
                self._move(name, exponents[name])
        lifted = {name: self._frames[name].lifted(value) for name, value in batch.items()}
        for (one, two), moment in self._moments.items():
            moment.addmm_(lifted[one].T, lifted[two])
        self.n += len(xs[0])
        if self.n >= 2 * self._centred_at:
            # What came first may lie far from the rest, and sums around it would lose the rest's digits. As often as n doubles.
            self._centred_at = self.n
            for name in self._frames:
                self._move(name, self._frames[name].exponent, self._frames[name].centre + self._mean(name))

    def _begin(self, batch: Mapping[Name, Tensor], exponents: Mapping[Name, int | None]) -> None:
        names = list(batch)
        cross = [(x, y) for x in names for y in names if (x[0], y[0]) == ("xs", "ys")]
        shapes = {
            (x, y): (batch[x].shape[1] + 2, batch[y].shape[1] + 2) for x, y in [*cross, *zip(names, names, strict=True)]
        }
        needed = sum(8 * rows * columns for rows, columns in shapes.values())
        if needed > self.max_bytes:
            raise ValueError(
                f"the products of these layers' features would take {needed / 2**30:.1f} GiB, more than max_bytes = "
                f"{self.max_bytes / 2**30:.1f} GiB: compare fewer layers at a time, or take MinibatchCKA"
            )
        self._centred_at = len(next(iter(batch.values())))
        for name, value in batch.items():
            centre = scaled(value.to(WIDE), exponents[name]).mean(0)
            self._frames[name] = _Frame(centre, exponents[name], torch.promote_types(value.dtype, torch.float32))
        for pair, shape in shapes.items():
            self._moments[pair] = torch.zeros(shape, dtype=WIDE, device=batch[pair[0]].device)

    def _require_known(self, widths: Mapping[Name, int]) -> None:
        known = {name: len(frame.centre) for name, frame in self._frames.items()}
        if widths != known:
            here, there = ({_text(name): width for name, width in which.items()} for which in (widths, known))
            raise ValueError(f"the layers must be those of the first batch, of widths {there}; got {here}")

    def _move(self, name: Name, exponent: int | None, centre: Tensor | None = None) -> None:
        """Expresses a layer at another exponent and around another centre (its own when none is given)."""
        frame = self._frames[name]
        # Zeros are the same at every exponent.
        scale = 1.0 if frame.exponent is None or exponent is None else 2.0 ** max(frame.exponent - exponent, -1000)
        target = frame.centre * scale if centre is None else centre
        for (one, two), moment in self._moments.items():
            if one == name:
                moment.copy_(_mapped(moment, scale, frame.centre * scale - target))
            if two == name:
                moment.copy_(_mapped(moment.T, scale, frame.centre * scale - target).T)
        self._frames[name] = replace(frame, centre=target, exponent=exponent)

    @torch.no_grad()
    def merge(self, other: "StreamingCKA") -> None:
        """Adds what another one has seen; the other stays as it is.

        Raises:
            ValueError: the other is over other layers, or no StreamingCKA.
        """
        if not isinstance(other, StreamingCKA):
            raise ValueError(f"only a StreamingCKA can be merged into one, got {type(other).__name__}")
        added = StreamingCKA(max_bytes=self.max_bytes)
        added.load_state_dict(other.state_dict())
        if not self._frames:
            self.n, self._frames, self._moments, self._centred_at = (
                added.n,
                added._frames,
                added._moments,
                max(added.n, 1),
            )
        elif added._frames:
            self._require_known({name: len(frame.centre) for name, frame in added._frames.items()})
            self._add(added)

    def _add(self, added: "StreamingCKA") -> None:
        for name, theirs in added._frames.items():
            known = [e for e in (self._frames[name].exponent, theirs.exponent) if e is not None]
            self._move(name, max(known) if known else None)
            ours = self._frames[name]
            added._move(name, ours.exponent, ours.centre)
            self._frames[name] = replace(ours, dtype=torch.promote_types(ours.dtype, theirs.dtype))
        for pair, moment in self._moments.items():
            moment += added._moments[pair]
        self.n += added.n

    @torch.no_grad()
    def compute(self, *, debiased: bool = False) -> Tensor:
        """CKA of everything seen so far, [layers of x, layers of y], float64. More updates may follow.

        Raises:
            ValueError: too few samples, a layer constant over them, or, debiased, samples that are all equally far apart.
        """
        require_enough(self.n, debiased, "what was seen so far")
        norms = {name: self._norm(name, debiased) for name in self._frames}
        rows, columns = ([name for name in self._frames if name[0] == side] for side in ("xs", "ys"))
        values = [[self._hsic(self._central(x, y))[debiased] / (norms[x] * norms[y]) for y in columns] for x in rows]
        return torch.tensor(values, dtype=WIDE, device=self._frames[rows[0]].centre.device)

    def _norm(self, name: Name, debiased: bool) -> float:
        frame, text = self._frames[name], _text(name)
        central, shape = self._central(name, name), (self.n, len(frame.centre))
        mean = frame.centre + self._mean(name)
        spread = central[:-2, :-2].diagonal()
        constant = constant_columns(spread, self.n * mean.square(), frame.dtype)
        if bool(constant.any()):
            self._require_heard(name, constant, spread)
        try:
            require_varying(constant, text, shape)
        except ValueError as error:  # or its squares are lost beside a feature that is huge
            raise Drowned(str(error)) from None
        biased, unbiased = self._hsic(central)
        if debiased:
            require_debiased_spread(unbiased, biased, text, shape, WIDE)
        return float((unbiased if debiased else biased) ** 0.5)

    def _require_heard(self, name: Name, constant: Tensor, spread: Tensor) -> None:
        """Checks that what rounding leaves of features that do not vary is nothing beside those that do."""
        residue, heard = spread[constant].abs().sum(), spread[~constant].sum()
        residue += _EPS * self.n * self._mean(name)[constant].square().sum()
        if bool((~constant).any() and (heard < _FAINT or residue > _UNHEARD * heard)):
            raise Drowned(
                f"{_text(name)} has features that do not vary and are so large that the others vanish beside them: leave them out"
            )

    def _mean(self, name: Name) -> Tensor:
        """The mean of u over the samples, [d]."""
        return self._moments[name, name][:-2, -1] / self.n

    def _central(self, one: Name, two: Name) -> Tensor:
        """A pair's M around both means."""
        half = _mapped(self._moments[one, two], 1.0, -self._mean(one))
        return _mapped(half.T, 1.0, -self._mean(two)).T

    def _hsic(self, central: Tensor) -> tuple[float, float]:
        """Biased and debiased HSIC, up to a factor that depends on n alone, of a pair's M around both means."""
        n = self.n
        full = central[:-2, :-2].square().sum().item()
        if n < 4:
            return full, float("nan")  # asked for by nobody: `compute` refuses
        diagonal, traces = central[-2, -2].item(), central[-2, -1].item() * central[-1, -2].item()
        return full, full - n / (n - 2) * diagonal + traces / ((n - 1) * (n - 2))

    def state_dict(self) -> dict[str, Tensor]:
        """All that was seen, as tensors by name, for `torch.save` or safetensors."""
        state = {"n": torch.tensor(self.n)}
        for name, frame in self._frames.items():
            state[f"centre {_text(name)}"] = frame.centre.clone()
            if frame.exponent is not None:
                state[f"exponent {_text(name)}"] = torch.tensor(frame.exponent)
            state[f"double {_text(name)}"] = torch.tensor(frame.dtype == torch.float64)
        for (one, two), moment in self._moments.items():
            state[f"moment {_text(one)} {_text(two)}"] = moment.clone()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes the place of what was seen so far.

        Raises:
            ValueError: not the state of a StreamingCKA.
        """
        try:
            # By number: a file has its tensors in an order of its own, safetensors xs[10] before xs[1].
            names = sorted(_name(text.removeprefix("centre ")) for text in state if text.startswith("centre "))
            frames = {
                name: _Frame(
                    state[f"centre {_text(name)}"].clone(),
                    int(state[f"exponent {_text(name)}"]) if f"exponent {_text(name)}" in state else None,
                    torch.float64 if bool(state[f"double {_text(name)}"]) else torch.float32,
                )
                for name in names
            }
            moments = {
                (one, two): state[f"moment {_text(one)} {_text(two)}"].clone()
                for one in frames
                for two in frames
                if one == two or (one[0], two[0]) == ("xs", "ys")
            }
            n = int(state["n"])
            if n < 0:
                raise ValueError(f"{n} samples")
            _require_state(n, frames, moments)
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
            raise ValueError(f"not the state of a StreamingCKA: {error}") from None
        self.n, self._frames, self._moments, self._centred_at = n, frames, moments, max(n, 1)


_EPS = torch.finfo(WIDE).eps
_UNHEARD = 1e-12
"""Rounding that is more than this beside what varies costs digits."""
_EXPONENTS = (-1100, 1025)
"""Those of float64, denormal numbers among them."""
_FAINT = 1e-100
"""Squares, of entries up to 1: their products are lost."""


class Drowned(ValueError):
    """The features of a layer are too far apart in size for products that are formed before it is known which vary."""


def _exceeds(exponent: int | None, known: int | None) -> bool:
    return exponent is not None and (known is None or exponent > known + _SLACK)


def _require_state(n: int, frames: Mapping[Name, _Frame], moments: Mapping[tuple[Name, Name], Tensor]) -> None:
    if (n > 0) != bool(frames) or (frames and {side for side, _ in frames} != {"xs", "ys"}):
        raise ValueError(f"{n} samples of {len(frames)} layers")
    for side in ("xs", "ys"):
        if [place for own, place in frames if own == side] != list(range(sum(own == side for own, _ in frames))):
            raise ValueError(f"the layers of {side} are not numbered from 0 on")
    for name, frame in frames.items():
        _require_frame(name, frame, moments)
    for (one, two), moment in moments.items():
        if not bool(moment.isfinite().all()):
            raise ValueError(f"the moment of {_text(one)} and {_text(two)} is not finite")
        shape = (len(frames[one].centre) + 2, len(frames[two].centre) + 2)
        if tuple(moment.shape) != shape or moment.dtype != WIDE or round(float(moment[-1, -1])) != n:
            raise ValueError(f"the moment of {_text(one)} and {_text(two)} is not that of {n} samples, float64 {shape}")


def _require_frame(name: Name, frame: _Frame, moments: Mapping[tuple[Name, Name], Tensor]) -> None:
    if not bool(frame.centre.isfinite().all()):
        raise ValueError(f"the centre of {_text(name)} is not finite")
    if frame.exponent is None:
        # As long as all that was seen is zero; then so is every moment that it has a part in, but for the other's own sums.
        parts = [frame.centre, *(moment[:-1] for (one, _), moment in moments.items() if one == name)]
        parts += [moment[:, :-1] for (_, two), moment in moments.items() if two == name]
        if any(bool(part.any()) for part in parts):
            raise ValueError(f"the exponent of {_text(name)} is missing")
    elif not _EXPONENTS[0] <= frame.exponent <= _EXPONENTS[1]:
        raise ValueError(f"the exponent of {_text(name)} is {frame.exponent}, that of no floating-point number")


def _mapped(moment: Tensor, scale: float, delta: Tensor) -> Tensor:
    """Σ z z'ᵀ with z replaced by that of scale · u + delta."""
    products, norms, sums = moment[:-2], moment[-2], moment[-1]
    moved = scale * products + torch.outer(delta, sums)
    squares = scale**2 * norms + 2 * scale * (delta @ products) + delta @ delta * sums
    return torch.cat([moved, squares[None], sums[None]])


def _text(name: Name) -> str:
    return f"{name[0]}[{name[1]}]"


def _name(text: str) -> Name:
    side, place = text.removesuffix("]").split("[")
    return side, int(place)
