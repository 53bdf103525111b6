"""Minibatch CKA (Nguyen et al. 2021, eq. 2): unbiased HSIC summed over minibatches, and one ratio at the end."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cdbench.similarity.inputs import WIDE, require_debiased_spread, require_enough, require_layers
from cdbench.similarity.matrix import gram_sums


class MinibatchCKA:
    """CKA of all layer pairs from Grams of minibatches only: for widths and sample counts where nothing exact fits.

    The sums are unbiased estimates of HSIC whatever the batch size; the ratio of them is not exactly that of all samples
    (`StreamingCKA` is), but converges to it with the number of batches. A batch counts by its n(n − 3) pairs, so a small last
    one does not outweigh its samples; equal batches give the published formula. Averaging the CKA of batches instead is
    wrong: a mean of ratios keeps the bias of each.

    Attributes:
        n: samples seen.
    """

    def __init__(self) -> None:
        self.n = 0
        self._layers = (0, 0)
        self._widths: list[int] = []
        self._exponents: list[int] = []
        self._cross = torch.zeros(0, 0, dtype=WIDE)
        self._own = torch.zeros(2, 0, dtype=WIDE)
        """Of each layer with itself: unbiased HSIC, and biased, which says how much of the former is rounding."""
        self._dtype = torch.float64

    @torch.no_grad()
    def update(self, xs: Sequence[Tensor], ys: Sequence[Tensor]) -> None:
        """Adds a minibatch; one that raises adds nothing.

        Args:
            xs: layers of one model, [b, d] each, b >= 4.
            ys: layers of the other, of the same samples.

        Raises:
            ValueError: as `cka_matrix`, naming the layer; another number of layers than before.
        """
        require_layers(xs, ys)
        require_enough(len(xs[0]), True, f"a minibatch, whose xs[0] is of shape {tuple(xs[0].shape)},")
        self._require_known(len(xs), [v.shape[1] for v in (*xs, *ys)])
        sums = gram_sums(xs, ys)
        (cross, own), (_, biased) = sums.hsic(debiased=True), sums.hsic(debiased=False)
        places = [*_places(sums.left, len(xs)), *_places(sums.right, len(ys))]
        owns = torch.stack([own, biased])[:, places]
        self._add(cross, owns, [sums.exponents[place] for place in places], len(xs[0]), sums.dtype)

    def merge(self, other: "MinibatchCKA") -> None:
        """Adds what another one has seen; the other stays as it is.

        Raises:
            ValueError: the other is none, or has other layers.
        """
        if not isinstance(other, MinibatchCKA):
            raise ValueError(f"only a MinibatchCKA can be merged into one, got {type(other).__name__}")
        if other.n:
            self._require_known(other._layers[0], other._widths)
            self._add(other._cross, other._own, other._exponents, other.n, other._dtype)

    def _require_known(self, left: int, widths: list[int]) -> None:
        if self.n and (left, widths) != (self._layers[0], self._widths):
            known, given = ((w[:k], w[k:]) for k, w in ((self._layers[0], self._widths), (left, widths)))
            raise ValueError(f"the layers must be those of the first batch, of widths {known}; got {given}")
        self._layers, self._widths = (left, len(widths) - left), widths

    def _add(self, cross: Tensor, own: Tensor, exponents: list[int], n: int, dtype: torch.dtype) -> None:
        """Every batch was scaled by powers of two of its own; the sums are kept in the scale of the largest."""
        if not self.n:
            self._exponents, self._cross, self._own = exponents, torch.zeros_like(cross), torch.zeros_like(own)
        top = [max(now, before) for now, before in zip(exponents, self._exponents, strict=True)]
        before, now = self._factors(self._exponents, top), self._factors(exponents, top)
        left = self._layers[0]
        self._cross = self._cross * torch.outer(before[:left], before[left:]) + cross * torch.outer(
            now[:left], now[left:]
        )
        self._own = self._own * before**2 + own * now**2
        self._exponents = top
        self._dtype = min(self._dtype, dtype, key=lambda each: torch.finfo(each).bits)
        self.n += n

    def _factors(self, exponents: list[int], top: list[int]) -> Tensor:
        """2^(2(e − top)), at most 1: of a Gram that was divided by 2^(2e) and is to be divided by 2^(2·top)."""
        steps = [2.0 ** max(2 * (e - t), -2000) for e, t in zip(exponents, top, strict=True)]
        return torch.tensor(steps, dtype=WIDE, device=self._cross.device)

    def compute(self) -> Tensor:
        """CKA, [layers of x, layers of y], float64.

        Raises:
            ValueError: no batch yet, or a layer whose samples are all equally far apart in every batch.
        """
        require_enough(self.n, True, "what was seen so far")
        left = self._layers[0]
        for place, (own, biased) in enumerate(self._own.T.tolist()):
            name = f"xs[{place}]" if place < left else f"ys[{place - left}]"
            require_debiased_spread(own, biased, name, (self.n, self._widths[place]), self._dtype)
        norms = self._own[0].sqrt()
        return self._cross / torch.outer(norms[:left], norms[left:])


def _places(selection: slice | list[int], count: int) -> list[int]:
    return selection if isinstance(selection, list) else list(range(selection.start, selection.start + count))
