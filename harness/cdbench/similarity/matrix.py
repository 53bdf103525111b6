"""CKA of every layer of one model with every layer of another, both estimators from one pass.

Each layer is read once. The Gram matrices, [n, n], of one side are kept, those of the other go past them a block at a time;
all pairs of a block are one product of what is in the buffer, a row a layer. With the diagonal taken out (hollow K), what both
estimators need are inner products:

    biased     ⟨K, L⟩ + diag·diag − 2/n rows·rows + total·total / n²               rows, total: sums of K
    debiased   ⟨K, L⟩ − 2/(n−2) rows·rows + total·total / ((n−1)(n−2))             rows, total: sums of hollow K

Both hold for Grams that are not centred; the features are centred beforehand wherever their mean would cost digits. Where
the Grams would be larger than the products of features, [d1, d2], these are taken instead: `streaming`.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from scipy.linalg import blas
from threadpoolctl import ThreadpoolController
from torch import Tensor

from cdbench.similarity.inputs import (
    WIDE,
    centred_at,
    require_debiased_spread,
    require_enough,
    require_layers,
    working_dtype,
)
from cdbench.similarity.streaming import Drowned, StreamingCKA

_CHUNK = 1 << 12
"""Entries of each Gram that are widened to float64 at a time."""
_FEW = 256
"""Below so many samples centring the features costs a good part of the product; a small mean is left to the formulas."""
_ROWS = 512
"""Rows that are widened to float64 at a time where products of features are taken."""
_BLOCK = 16
"""Grams of the other side that are held at a time, where n is not small."""
_HALF = 64
"""From so many samples on half a product by BLAS syrk is faster than a whole one by torch, which has no half ones."""
_CONSTANT = 1e-9
"""A spread below this part of the mean is judged feature by feature."""
_SAFE = (2.0**-44, 2.0**56)
"""Traces between these have squares of Gram entries well inside float32."""


class CkaMatrices(NamedTuple):
    """Both estimators, [layers of x, layers of y] each, float64."""

    biased: Tensor
    debiased: Tensor


def cka_matrix(xs: Sequence[Tensor], ys: Sequence[Tensor], *, debiased: bool = False) -> Tensor:
    """Linear CKA of every layer in xs with every layer in ys, [len(xs), len(ys)], float64, without gradient.

    Memory: the Grams of xs and of up to 16 layers more, n² values each, plus one layer; a layer that stands in both lists is
    read once. Where n exceeds the sum of the widths: the products of features in float64, as in `StreamingCKA`. float16 and
    bfloat16 are read as float32; where any layer is float64, all are.

    Raises:
        ValueError: as `linear_cka`, naming the layer.
    """
    return _matrices(xs, ys, (debiased,))[0]


def cka_matrices(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> CkaMatrices:
    """Both estimators for all pairs, at the cost of one.

    Raises:
        ValueError: as `linear_cka`, naming the layer; n < 4.
    """
    biased, debiased = _matrices(xs, ys, (False, True))
    return CkaMatrices(biased, debiased)


@torch.no_grad()
def _matrices(xs: Sequence[Tensor], ys: Sequence[Tensor], estimators: Sequence[bool]) -> list[Tensor]:
    require_layers(xs, ys)
    n = len(xs[0])
    require_enough(n, any(estimators), f"xs[0] of shape {tuple(xs[0].shape)}")
    # All Grams cost n²·W multiplications, W the sum of all widths; all products of features about n·W².
    if n > sum(v.shape[1] for v in {id(v): v for v in (*xs, *ys)}.values()):
        try:
            return _by_features(xs, ys, estimators)
        except Drowned:  # all samples are here: what does not vary is left out first
            one, two = (
                [centred_at(value, f"{side}[{i}]", WIDE)[0] for i, value in enumerate(values)]
                for side, values in (("xs", xs), ("ys", ys))
            )
            return _by_features(one, two, estimators)
    return gram_sums(xs, ys).cka(estimators)


def _by_features(xs: Sequence[Tensor], ys: Sequence[Tensor], estimators: Sequence[bool]) -> list[Tensor]:
    stream = StreamingCKA()
    for a in range(0, len(xs[0]), _ROWS):
        stream.update([x[a : a + _ROWS] for x in xs], [y[a : a + _ROWS] for y in ys])
    return [stream.compute(debiased=debiased) for debiased in estimators]


@dataclass(frozen=True)
class GramSums:
    """What both estimators need of the Grams of L distinct layers, S of them on the left and T on the right; float64.

    Attributes:
        cross: [S, T] ⟨K, L⟩ of hollow Grams.
        own: [L] the same of each layer with itself.
        diagonals: [L, n] of the Grams.
        rows: [L, n] sums over the rows of the hollow Grams.
        left: where the layers of x stand among the L.
        right: where those of y stand.
        exponents: [L] of the power of two that a layer was divided by; its HSIC with itself is 2^(4·exponent) larger.
        names: [L] what a layer is called in messages.
        shapes: [L] of the layers.
        dtype: in which the Grams were formed.
    """

    cross: Tensor
    own: Tensor
    diagonals: Tensor
    rows: Tensor
    left: slice | list[int]
    right: slice | list[int]
    exponents: list[int]
    names: list[str]
    shapes: list[torch.Size]
    dtype: torch.dtype

    def hsic(self, debiased: bool) -> tuple[Tensor, Tensor]:
        """HSIC of all pairs [S, T] and of each layer with itself [L], up to a factor that depends on n alone."""
        n = self.rows.shape[1]
        rows = self.rows if debiased else self.rows + self.diagonals
        # Moved by so much of their mean, the rows alone give both of their terms: the shorter formula, the same value.
        weight, of_totals = (2 / (n - 2), n / (2 * (n - 1))) if debiased else (2 / n, 1 / 2)
        rows = rows - (1 - (1 - of_totals) ** 0.5) * rows.mean(1, keepdim=True)
        own = torch.sub(self.own, torch.linalg.vecdot(rows, rows), alpha=weight)
        cross = torch.addmm(self.cross, rows[self.left], rows[self.right].T, alpha=-weight)
        if not debiased:
            own += torch.linalg.vecdot(self.diagonals, self.diagonals)
            cross.addmm_(self.diagonals[self.left], self.diagonals[self.right].T)
        return cross, own

    def cka(self, estimators: Sequence[bool]) -> list[Tensor]:
        """The ratio, [S, T], by each estimator (debiased or not).

        Raises:
            ValueError: debiased, and the unbiased HSIC of a layer with itself is 0.
        """
        results = []
        biased = self.hsic(debiased=False)
        for debiased in estimators:
            cross, own = self.hsic(debiased=True) if debiased else biased
            if debiased:
                least = int((own / biased[1]).argmin())
                shape, limit = tuple(self.shapes[least]), biased[1][least].item()
                require_debiased_spread(own[least].item(), limit, self.names[least], shape, self.dtype)
            norms = own.sqrt()
            results.append(cross / torch.outer(norms[self.left], norms[self.right]))
        return results


def gram_sums(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> GramSums:
    """Forms the Gram of each distinct layer and takes from it what the estimators need; to be called without gradient.

    Raises:
        ValueError: a layer that is constant, or holds NaN or infinity, naming it.
    """
    distinct: list[Tensor] = []
    names: list[str] = []
    places: dict[int, int] = {}
    for side, values in (("xs", xs), ("ys", ys)):
        for i, value in enumerate(values):
            if id(value) not in places:
                places[id(value)] = len(distinct)
                distinct.append(value)
                names.append(f"{side}[{i}]")
    left, right = (_selection([places[id(value)] for value in side]) for side in (xs, ys))
    with _no_autocast(xs[0].device.type), _blas_threads_as_torch(len(xs[0])):
        grams = _Grams(distinct, names, len({id(value) for value in xs}), working_dtype(*distinct))
        inner, own, rows, diagonals = grams.sums()
    shapes = [value.shape for value in distinct]
    return GramSums(
        inner[left][:, right], own, diagonals, rows, left, right, grams.exponents, names, shapes, grams.dtype
    )


class _Grams:
    """Gram matrices of layers, centred, or of features whose mean is too small to matter.

    Those of the first `kept` layers stand in the buffer [slots, n, n] from first to last, those of the others go past them.
    """

    def __init__(self, layers: list[Tensor], names: list[str], kept: int, dtype: torch.dtype) -> None:
        n, device = len(layers[0]), layers[0].device
        self.layers, self.names, self.kept, self.dtype = layers, names, kept, dtype
        self.exponents = [0] * len(layers)
        others = len(layers) - kept
        self.at_once = others if n < _FEW else min(others, _BLOCK)
        self._halves = device.type == "cpu" and n >= _HALF
        """Whether the buffer has of each Gram only what is not below the diagonal, and 0 there."""
        make, self._product = (torch.zeros, _upper_half) if self._halves else (torch.empty, _whole)
        self.buffer = make(kept + self.at_once, n, n, dtype=dtype, device=device)
        self._slots = self.buffer.unbind()
        # Room for one layer: a fresh allocation each costs more than the subtraction.
        self._centred = torch.empty(n * max(layer.shape[1] for layer in layers), dtype=dtype, device=device)
        self._averaging = torch.full((1, n), 1 / n, dtype=dtype, device=device)
        self._offsets = torch.zeros(len(layers), dtype=WIDE, device=device)
        """Squared norm of what was subtracted."""

    def sums(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Forms all Grams and sums over them: inner products of the kept with all [kept, L]; own, rows, diagonals of `GramSums`.

        Raises:
            ValueError: a layer that is constant, or holds NaN or infinity.
        """
        # The first layer tells what to expect of the others; each is checked below.
        raw = self.buffer.shape[1] < _FEW and self._first_has_small_mean()
        slots = len(self.buffer)
        found = [self._block(0, 0, slots, raw)]
        for first in range(slots, len(self.layers), self.at_once or 1):
            found.append(self._block(self.kept, first, min(self.at_once, len(self.layers) - first), raw))
        if len(found) == 1:
            return found[0]
        inner, own, rows, diagonals = zip(*found, strict=True)
        return torch.cat(inner, 1), torch.cat(own), torch.cat(rows), torch.cat(diagonals)

    def _block(self, slot: int, first: int, count: int, raw: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Forms the Grams of `count` layers from `first` on, in the slots from `slot` on; gives of these what `sums` does."""
        for i in range(int(raw and not first), count):
            self._form(first + i, slot + i, centre=not raw)
        buffer = self.buffer[: slot + count]
        diagonal = buffer[slot:].diagonal(dim1=1, dim2=2)
        diagonals = diagonal.to(WIDE, copy=True)
        diagonal.zero_()
        sums = self._hollow_sums(buffer, slot)
        again = self._imprecise(diagonals, sums[2], self._offsets[first : first + count], raw)
        if not again:
            return *sums, diagonals
        for i in again:
            layer, name = self.layers[first + i], self.names[first + i]
            rows, self.exponents[first + i] = centred_at(layer, name, self.dtype)
            self._product(rows, buffer[slot + i])
            diagonals[i] = diagonal[i]
        diagonal.zero_()
        return *self._hollow_sums(buffer, slot), diagonals

    def _first_has_small_mean(self) -> bool:
        self._form(0, 0, centre=False)
        total, trace = float(self._slots[0].sum()), float(self._slots[0].trace())
        offset = (2 * total - trace if self._halves else total) / self.buffer.shape[1]
        return offset <= trace - offset

    def _imprecise(self, diagonals: Tensor, rows: Tensor, offsets: Tensor, raw: bool) -> list[int]:
        """Which Grams must be formed with care: entries out of range, a mean that costs digits, or nearly constant."""
        n = rows.shape[1]
        # One transfer: on a GPU each waits for the device.
        sums = torch.stack([rows.sum(1), diagonals.sum(1), offsets]).tolist()
        again = []
        for place, (hollow, trace, offset) in enumerate(zip(*sums, strict=True)):
            mean = (hollow + trace) / n
            spread = trace - mean
            varied = mean <= spread if raw else spread > _CONSTANT * (mean + n * offset)
            if not (varied and _SAFE[0] < spread < _SAFE[1]):
                again.append(place)
        return again

    def _hollow_sums(self, buffer: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over hollow Grams in float64, a few rows of all layers at a time.

        Returns:
            Inner products of the kept Grams with those from `first` on [kept, new]; of each new one with itself [new], and sums
            over its rows [new, n].
        """
        n = buffer.shape[1]
        rows = torch.zeros(len(buffer) - first, n, dtype=WIDE, device=buffer.device)
        inner, own = (torch.zeros((), dtype=WIDE, device=buffer.device) for _ in range(2))
        a = 0
        while a < n:
            start = a if self._halves else 0
            b = a + max(1, _CHUNK // (n - start))
            wide = buffer[:, a:b, start:].to(WIDE)
            flat, new = wide.flatten(1), wide[first:]
            inner = inner + flat[: self.kept] @ flat[first:].T
            own = own + torch.linalg.vecdot(flat[first:], flat[first:])
            rows[:, a:b] += new.sum(2)
            if self._halves:  # what is above the diagonal stands below it, too
                rows[:, a:] += new.sum(1)
            a = b
        return (2 * inner, 2 * own, rows) if self._halves else (inner, own, rows)

    def _form(self, place: int, slot: int, centre: bool) -> None:
        x = self.layers[place]
        if x.dtype != self.dtype:
            x = x.to(self.dtype)
        if centre:
            # Twice as fast as x.mean(0). Its last digits do not matter: what is left of the mean, the formulas take off.
            mean = torch.mm(self._averaging, x)[0]
            self._offsets[place] = mean @ mean
            x = torch.sub(x, mean, out=self._centred[: x.numel()].view(x.shape))
        self._product(x, self._slots[slot])


def _whole(rows: Tensor, out: Tensor) -> None:
    torch.mm(rows, rows.T, out=out)


def _upper_half(rows: Tensor, out: Tensor) -> None:
    """The product on the diagonal and above it; below, `out` stays as it is."""
    array = rows.resolve_neg().contiguous().numpy().T
    syrk = blas.dsyrk if rows.dtype == WIDE else blas.ssyrk
    # For BLAS, which counts by columns, `out` is transposed, and its upper half a lower one.
    syrk(1.0, array, trans=1, lower=1, c=out.numpy().T, overwrite_c=1)


def _selection(places: list[int]) -> slice | list[int]:
    """A slice where the places are consecutive: a view where a list would copy."""
    consecutive = places == list(range(places[0], places[0] + len(places)))
    return slice(places[0], places[0] + len(places)) if consecutive else places


def _no_autocast(device: str) -> AbstractContextManager[object]:
    """Products in the layers' own precision, at no cost where autocast is off anyway."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


@contextmanager
def _blas_threads_as_torch(n: int) -> Iterator[None]:
    """SciPy's BLAS with torch's number of threads: the last digits depend on it, and records state torch's."""
    if n < _HALF:
        yield
        return
    with _controller().limit(limits=torch.get_num_threads(), user_api="blas"):
        yield


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()
