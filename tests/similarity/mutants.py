"""Wrong CKAs as people really ship them, each with the cause that the battery must name. Test data: nothing here is right.

Written as they stand in the wild, not after the battery's own list of wrong forms: in notebooks, in distillation repositories
and in packages on the index (the comment says where a kind was seen).
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdbench.similarity import linear_cka
from cdbench.similarity.conformance.causes import Cause


@dataclass(frozen=True)
class Mutant:
    """A wrong CKA: what it is, what it computes, as which estimator it is sold, and what is wrong with it."""

    name: str
    call: Any = field(repr=False)
    cause: Cause
    debiased: bool = False
    kind: str = "function"


def cosine(k: Tensor, m: Tensor) -> Tensor:
    return (k * m).sum() / (torch.linalg.norm(k) * torch.linalg.norm(m))


def centre(x: Tensor) -> Tensor:
    return x - x.mean(dim=0, keepdim=True)


def centre_gram(k: Tensor) -> Tensor:
    return k - k.mean(0, keepdim=True) - k.mean(1, keepdim=True) + k.mean()


def song(k: Tensor, m: Tensor, c: float | None = None) -> Tensor:
    n = k.shape[0]
    k, m = k.clone().fill_diagonal_(0), m.clone().fill_diagonal_(0)
    first = torch.trace(k @ m)
    second = k.sum() * m.sum() / ((n - 1) * (n - 2))
    return (first + second - (c if c is not None else 2 / (n - 2)) * (k @ m).sum()) / (n * (n - 3))


def by(hsic: Any, k: Tensor, m: Tensor) -> Tensor:
    return hsic(k, m) / torch.sqrt(hsic(k, k) * hsic(m, m))


def forgot_to_centre(x: Tensor, y: Tensor) -> Tensor:
    return cosine(x @ x.T, y @ y.T)


def feature_form_forgot_to_centre(x: Tensor, y: Tensor) -> Tensor:
    return torch.norm(y.T @ x) ** 2 / (torch.norm(x.T @ x) * torch.norm(y.T @ y))


def centres_only_the_first(x: Tensor, y: Tensor) -> Tensor:
    x = centre(x)
    return cosine(x @ x.T, y @ y.T)


def centres_over_features(x: Tensor, y: Tensor) -> Tensor:
    x, y = x - x.mean(dim=-1, keepdim=True), y - y.mean(dim=-1, keepdim=True)
    return cosine(x @ x.T, y @ y.T)


def centring_matrix_with_n_minus_one(x: Tensor, y: Tensor) -> Tensor:
    n = len(x)
    h = torch.eye(n, dtype=x.dtype) - torch.ones(n, n, dtype=x.dtype) / (n - 1)
    return cosine(h @ (x @ x.T) @ h, h @ (y @ y.T) @ h)


def no_root_below(x: Tensor, y: Tensor) -> Tensor:  # a pull request to a package of shape metrics
    x, y = centre(x), centre(y)
    return torch.norm(x.T @ y) ** 2 / (torch.norm(x.T @ x) ** 2 * torch.norm(y.T @ y) ** 2)


def no_square_above(x: Tensor, y: Tensor) -> Tensor:
    x, y = centre(x), centre(y)
    return torch.norm(x.T @ y) / torch.sqrt(torch.norm(x.T @ x) * torch.norm(y.T @ y))


def divides_by_the_larger(x: Tensor, y: Tensor) -> Tensor:
    x, y = centre(x), centre(y)
    k, m = x @ x.T, y @ y.T
    return (k * m).sum() / torch.maximum((k * k).sum(), (m * m).sum())


def eps_in_the_denominator(x: Tensor, y: Tensor) -> Tensor:  # distillation losses
    x, y = centre(x), centre(y)
    k, m = x @ x.T, y @ y.T
    return (k * m).sum() / (torch.norm(k) * torch.norm(m) + 1e-6)


def eps_under_the_root(x: Tensor, y: Tensor) -> Tensor:  # a package on the index
    k, m = centre(x) @ centre(x).T, centre(y) @ centre(y).T
    return song(k, m) / torch.sqrt(song(k, k) * song(m, m) + 1e-4)


def clamps_the_debiased(x: Tensor, y: Tensor) -> Tensor:  # a package on the index
    return linear_cka(x, y, debiased=True).clamp(0.0, 1.0)


def biased_for_debiased(x: Tensor, y: Tensor) -> Tensor:  # 'unbiased=True' that only scales by constants
    return linear_cka(x, y)


def song_on_uncentred(x: Tensor, y: Tensor) -> Tensor:  # three packages on the index
    return by(song, x @ x.T, y @ y.T)


def gram_centred_after_the_fact(x: Tensor, y: Tensor) -> Tensor:
    return cosine(centre_gram(x @ x.T), centre_gram(y @ y.T))


def unbiased_over_biased(x: Tensor, y: Tensor) -> Tensor:  # a package on the index
    k, m = centre(x) @ centre(x).T, centre(y) @ centre(y).T
    n = len(x)
    return song(k, m) / (torch.norm(k) * torch.norm(m) / (n - 1) ** 2)


def wrong_coefficient(x: Tensor, y: Tensor) -> Tensor:
    k, m = centre(x) @ centre(x).T, centre(y) @ centre(y).T
    return by(lambda a, b: song(a, b, 2 / (len(a) - 1)), k, m)


def diagonal_by_broadcast(x: Tensor, y: Tensor) -> Tensor:  # an issue in a notebook's repository
    def hsic(k: Tensor, m: Tensor) -> Tensor:
        n = len(k)
        k, m = k - torch.diag(k), m - torch.diag(m)
        return torch.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ m).sum()

    return by(hsic, centre(x) @ centre(x).T, centre(y) @ centre(y).T)


def diagonal_left_in(x: Tensor, y: Tensor) -> Tensor:
    def hsic(k: Tensor, m: Tensor) -> Tensor:
        n = len(k)
        return torch.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ m).sum()

    return by(hsic, x @ x.T, y @ y.T)


def off_diagonal_cosine(x: Tensor, y: Tensor) -> Tensor:
    k, m = (centre(v) @ centre(v).T for v in (x, y))
    off = ~torch.eye(len(x), dtype=torch.bool)
    return cosine(k[off], m[off])


def z_scores(x: Tensor, y: Tensor) -> Tensor:
    return linear_cka(centre(x) / (x.std(0) + 1e-12), centre(y) / (y.std(0) + 1e-12))


def unit_rows(x: Tensor, y: Tensor) -> Tensor:  # distillation losses: F.normalize first
    return linear_cka(torch.nn.functional.normalize(x, dim=1), torch.nn.functional.normalize(y, dim=1))


def cca_in_disguise(x: Tensor, y: Tensor) -> Tensor:
    q, r = (torch.linalg.svd(centre(v), full_matrices=False)[0][:, : min(v.shape[1], len(v) - 1)] for v in (x, y))
    return (q.T @ r).square().sum() / min(q.shape[1], r.shape[1])


def angle(x: Tensor, y: Tensor) -> Tensor:  # a package of shape metrics returns the angular distance
    return torch.arccos(linear_cka(x, y).clamp(-1, 1))


def loss_instead(x: Tensor, y: Tensor) -> Tensor:
    return 1 - linear_cka(x, y)


def shifted_rows(x: Tensor, y: Tensor) -> Tensor:  # a loader that shuffles one side
    return linear_cka(x, y.roll(1, 0))


def cut_to_common_width(x: Tensor, y: Tensor) -> Tensor:  # paper code for teachers wider than the student
    d = min(x.shape[1], y.shape[1])
    return linear_cka(x[:, :d], y[:, :d])


def padded_batch(x: Tensor, y: Tensor) -> Tensor:  # a static shape for a compiler
    short = -len(x) % 8
    return linear_cka(torch.cat([x, x.new_zeros(short, x.shape[1])]), torch.cat([y, y.new_zeros(short, y.shape[1])]))


def repeated_rows(x: Tensor, y: Tensor) -> Tensor:  # one prompt sampled twice
    return linear_cka(x.repeat(2, 1), y.repeat(2, 1), debiased=True)


def flattened_positions(x: Tensor, y: Tensor) -> Tensor:  # paper A's released code
    return linear_cka(x.flatten(0, -2), y.flatten(0, -2))


def half_precision_products(x: Tensor, y: Tensor) -> Tensor:
    x, y = centre(x.bfloat16()), centre(y.bfloat16())
    return cosine(x @ x.T, y @ y.T)


def no_widening(x: Tensor, y: Tensor) -> Tensor:  # right in float32, overflows in float16
    x, y = centre(x), centre(y)
    return (x @ x.T * (y @ y.T)).sum() / ((x @ x.T).norm() * (y @ y.T).norm())


def fourth_powers(x: Tensor, y: Tensor) -> Tensor:
    x, y = centre(x.float() if x.dtype != torch.float64 else x), centre(y.float() if y.dtype != torch.float64 else y)
    k, m = x @ x.T, y @ y.T
    return (k * m).sum() / torch.sqrt((k * k).sum() * (m * m).sum())


def stored_detached(x: Tensor, y: Tensor) -> Tensor:  # paper A's released hooks
    return linear_cka(x.detach(), y)


def by_numpy(x: Tensor, y: Tensor) -> float:
    a, b = (v.detach().to(torch.float64).numpy() for v in (x, y))
    a, b = a - a.mean(0), b - b.mean(0)
    return float(np.linalg.norm(a.T @ b) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)))


def clamped_gradient(x: Tensor, y: Tensor) -> Tensor:
    value = linear_cka(x, y, debiased=True)
    return value + (value.clamp(min=0) - value).detach() if bool(value >= 0) else value.detach() + 0 * value


def centres_in_place(x: Tensor, y: Tensor) -> Tensor:
    if not x.requires_grad:
        x -= x.mean(0)
        y -= y.mean(0)
    return linear_cka(x, y)


def random_projection(x: Tensor, y: Tensor) -> Tensor:  # 'to save memory'
    generator = torch.Generator().manual_seed(int(np.random.default_rng().integers(1 << 30)))
    d = max(x.shape[1] // 2, 1)
    return linear_cka(x @ torch.randn(x.shape[1], d, generator=generator).to(x), y)


def nan_to_zero(x: Tensor, y: Tensor) -> Tensor:
    if x.ndim != 2 or 0 in x.shape or len(x) != len(y) or not x.is_floating_point():
        raise ValueError("bad input")
    try:
        return linear_cka(x, y)
    except ValueError:  # what nan_to_num does to 0/0
        return torch.zeros(())


def gram_route_forgets_to_square(x: Tensor, y: Tensor) -> Tensor:
    value = linear_cka(x, y)
    return value if len(x) > x.shape[1] + y.shape[1] else value.abs().sqrt()


def narrowed(x: Tensor, y: Tensor) -> Tensor:  # `.float()` first: right to float32
    if x.ndim != 2 or not x.is_floating_point():
        raise ValueError("bad input")
    return linear_cka(x.float(), y.float())


def takes_lists(x: Tensor, y: Tensor) -> list[float]:
    return [linear_cka(x, y).item()]


class LastBatch:
    def update(self, x: Tensor, y: Tensor) -> None:  # a class on the index
        self.value = linear_cka(x, y) if len(x) > 3 else getattr(self, "value", torch.tensor(math.nan))

    def compute(self) -> Tensor:
        return self.value


class MeanOfBatches:
    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def update(self, x: Tensor, y: Tensor) -> None:
        if len(x) > 3:
            self.values.append(linear_cka(x, y))

    def compute(self) -> Tensor:
        return torch.stack(self.values).mean()


class LastThree:
    """A buffer of the last few batches."""

    def __init__(self) -> None:
        self.kept: list[tuple[Tensor, Tensor]] = []

    def update(self, x: Tensor, y: Tensor) -> None:
        self.kept = [*self.kept, (x, y)][-3:]

    def compute(self) -> Tensor:
        return linear_cka(*(torch.cat(side) for side in zip(*self.kept, strict=True)))


class Emptied(LastThree):
    """Resets itself when it is asked, as a metric at the end of an epoch."""

    def update(self, x: Tensor, y: Tensor) -> None:
        self.kept.append((x, y))

    def compute(self) -> Tensor:
        value = super().compute()
        self.kept = []
        return value


class MeanOfTextbooks(MeanOfBatches):
    def update(self, x: Tensor, y: Tensor) -> None:
        self.values.append(cosine(centre(x) @ centre(x).T, centre(y) @ centre(y).T))


def needs_ten(x: Tensor, y: Tensor) -> Tensor:
    if len(x) < 10:
        raise ValueError("at least 10 samples")
    return linear_cka(x, y)


def first_512(x: Tensor, y: Tensor) -> Tensor:
    return linear_cka(x[:512], y[:512])


def biased_when_large(x: Tensor, y: Tensor) -> Tensor:
    return linear_cka(x, y, debiased=len(x) <= 64)


def first_2048_features(x: Tensor, y: Tensor) -> Tensor:
    return linear_cka(x[:, :2048], y[:, :2048])


def half_has_no_gradient(x: Tensor, y: Tensor) -> Tensor:
    return linear_cka(x, y) if x.dtype in (torch.float32, torch.float64) else linear_cka(x.detach(), y)


def detached_norms(x: Tensor, y: Tensor) -> Tensor:
    linear_cka(x, y)  # refuses what has no CKA
    x, y = centre(x), centre(y)
    below = torch.norm(x.T @ x) * torch.norm(y.T @ y)
    return torch.norm(y.T @ x) ** 2 / below.detach()


def by_logarithms(x: Tensor, y: Tensor) -> Tensor:
    linear_cka(x, y)
    x, y = (centre(v.to(torch.promote_types(v.dtype, torch.float32))) for v in (x, y))
    both, one, two = ((a.T @ b).square().sum().log() for a, b in ((x, y), (x, x), (y, y)))
    return torch.exp(both - (one + two) / 2)


def one_mean_for_all(x: Tensor, y: Tensor) -> Tensor:
    x, y = x - x.mean(), y - y.mean()
    return cosine(x @ x.T, y @ y.T)


def u_centred_by_n_minus_one(x: Tensor, y: Tensor) -> Tensor:
    def u(v: Tensor) -> Tensor:
        k = centre(v) @ centre(v).T
        n = len(k)
        k = k - torch.diag(k.diag())
        means = k.sum(1) / (n - 1)
        k = k - means - means[:, None] + k.sum() / ((n - 1) * (n - 1))
        return k - torch.diag(k.diag())

    return cosine(u(x), u(y))


MUTANTS = [
    Mutant("forgot to centre", forgot_to_centre, Cause.NOT_CENTRED),
    Mutant("feature form, forgot to centre", feature_form_forgot_to_centre, Cause.NOT_CENTRED),
    Mutant("centres only the first", centres_only_the_first, Cause.HALF_CENTRED),
    Mutant("centres over features", centres_over_features, Cause.WRONG_AXIS),
    Mutant("centring matrix with n - 1", centring_matrix_with_n_minus_one, Cause.CENTRING_MATRIX),
    Mutant("no root below", no_root_below, Cause.POWER),
    Mutant("no square above", no_square_above, Cause.POWER),
    Mutant("divides by the larger", divides_by_the_larger, Cause.NORMALISATION),
    Mutant("eps in the denominator", eps_in_the_denominator, Cause.EPSILON),
    Mutant("eps under the root", eps_under_the_root, Cause.EPSILON, debiased=True),
    Mutant("clamps the debiased", clamps_the_debiased, Cause.CLAMP, debiased=True),
    Mutant("biased for debiased", biased_for_debiased, Cause.BIASED, debiased=True),
    Mutant("Song on uncentred features", song_on_uncentred, Cause.SONG_UNCENTRED, debiased=True),
    Mutant("Gram centred after the fact", gram_centred_after_the_fact, Cause.SONG_UNCENTRED),
    Mutant("unbiased over biased", unbiased_over_biased, Cause.MIXED, debiased=True),
    Mutant("wrong coefficient", wrong_coefficient, Cause.COEFFICIENT, debiased=True),
    Mutant("diagonal by broadcast", diagonal_by_broadcast, Cause.DIAGONAL, debiased=True),
    Mutant("diagonal left in", diagonal_left_in, Cause.DIAGONAL, debiased=True),
    Mutant("off-diagonal cosine", off_diagonal_cosine, Cause.DIAGONAL),
    Mutant("z-scores", z_scores, Cause.STANDARDISED),
    Mutant("unit rows", unit_rows, Cause.STANDARDISED),
    Mutant("CCA in disguise", cca_in_disguise, Cause.WHITENED),
    Mutant("angle", angle, Cause.DISTANCE),
    Mutant("loss instead of similarity", loss_instead, Cause.DISTANCE),
    Mutant("shifted rows", shifted_rows, Cause.PAIRING),
    Mutant("cut to the common width", cut_to_common_width, Cause.TRUNCATED),
    Mutant("padded batch", padded_batch, Cause.ROWS),
    Mutant("repeated rows", repeated_rows, Cause.ROWS, debiased=True),
    Mutant("flattened positions", flattened_positions, Cause.ROWS),
    Mutant("half-precision products", half_precision_products, Cause.HALF_PRECISION),
    Mutant("no widening", no_widening, Cause.HALF_PRECISION),
    Mutant("fourth powers", fourth_powers, Cause.OVERFLOW),
    Mutant("stored detached", stored_detached, Cause.DETACHED),
    Mutant("by NumPy", by_numpy, Cause.DETACHED),
    Mutant("clamped gradient", clamped_gradient, Cause.CLAMP, debiased=True),
    Mutant("centres in place", centres_in_place, Cause.IN_PLACE),
    Mutant("random projection", random_projection, Cause.RANDOM),
    Mutant("NaN to zero", nan_to_zero, Cause.SILENT),
    Mutant("Gram route forgets to square", gram_route_forgets_to_square, Cause.ROUTE),
    Mutant("narrowed to float32", narrowed, Cause.NARROWED),
    Mutant("returns a list", takes_lists, Cause.NO_NUMBER),
    Mutant("last batch", LastBatch, Cause.LAST_BATCH, kind="stream"),
    Mutant("mean of batches", MeanOfBatches, Cause.MEAN_OF_BATCHES, kind="stream"),
    Mutant("last three batches", LastThree, Cause.LAST_BATCH, kind="stream"),
    Mutant("emptied by compute", Emptied, Cause.CONSUMED, kind="stream"),
    Mutant("mean of textbook values", MeanOfTextbooks, Cause.MEAN_OF_BATCHES, kind="stream"),
    Mutant("needs ten samples", needs_ten, Cause.FAILS),
    Mutant("first 512 samples", first_512, Cause.SUBSET),
    Mutant("biased when there are many samples", biased_when_large, Cause.BIASED, debiased=True),
    Mutant("first 2,048 features", first_2048_features, Cause.TRUNCATED),
    Mutant("no gradient in half precision", half_has_no_gradient, Cause.DETACHED),
    Mutant("norms detached", detached_norms, Cause.GRADIENT),
    Mutant("by logarithms", by_logarithms, Cause.ROUNDED),
    Mutant("one mean for all features", one_mean_for_all, Cause.NOT_CENTRED),
    Mutant("U-centred by n - 1", u_centred_by_n_minus_one, Cause.COEFFICIENT, debiased=True),
]
