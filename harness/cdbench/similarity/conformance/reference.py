"""CKA from its definitions, in float64, slow and literal; and the known wrong forms of it.

Nothing here shares code with the estimators.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from cdbench.similarity.conformance.causes import Cause


def textbook(x: Tensor, y: Tensor, debiased: bool) -> Tensor:
    """Kornblith et al. 2019, eq. 3 and 4 with an explicit H, or Song et al. 2012, eq. 5 with explicit vectors of ones."""
    k, m = (_gram(_centred(value)) for value in (x, y))
    hsic = _song if debiased else _gretton
    return hsic(k, m) / torch.sqrt(hsic(k, k) * hsic(m, m))


def _centred(x: Tensor) -> Tensor:
    x = x.double()
    return x - x.mean(0)


def _gram(x: Tensor) -> Tensor:
    return x @ x.T


def _gretton(k: Tensor, m: Tensor) -> Tensor:
    n = len(k)
    h = torch.eye(n, dtype=torch.float64, device=k.device) - 1 / n
    return torch.trace(k @ h @ m @ h) / (n - 1) ** 2


def _song(k: Tensor, m: Tensor, coefficient: float = 0.0) -> Tensor:
    n = len(k)
    k, m = (value - torch.diag(torch.diag(value)) for value in (k, m))
    one = torch.ones(n, dtype=torch.float64, device=k.device)
    total = torch.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return (total - (coefficient or 2 / (n - 2)) * (one @ k @ m @ one)) / (n * (n - 3))


Hsic = Callable[[Tensor, Tensor], Tensor]
Form = Callable[[Tensor, Tensor, bool], float]


def _ratio(k: Tensor, m: Tensor, hsic: Hsic) -> float:
    return float(hsic(k, m) / torch.sqrt(hsic(k, k) * hsic(m, m)))


def _inner(k: Tensor, m: Tensor) -> Tensor:
    return (k * m).sum()


def _of(prepare: Callable[[Tensor], Tensor]) -> Form:
    """The right estimator on features that were prepared wrongly."""
    return lambda x, y, debiased: float(textbook(prepare(x.double()), prepare(y.double()), debiased))


def _not_centred(x: Tensor, y: Tensor, debiased: bool) -> float:
    k, m = _gram(x.double()), _gram(y.double())
    return _ratio(k, m, _hollow_inner if debiased else _inner)


def _hollow_inner(k: Tensor, m: Tensor) -> Tensor:
    return (k * m).sum() - k.diag() @ m.diag()


def _one_mean(x: Tensor, y: Tensor, debiased: bool) -> float:
    k, m = (_gram(value.double() - value.double().mean()) for value in (x, y))
    return _ratio(k, m, _hollow_inner if debiased else _inner)


def _half_centred(x: Tensor, y: Tensor, debiased: bool) -> float:
    return _ratio(_gram(_centred(x)), _gram(y.double()), _hollow_inner if debiased else _inner)


def _wrong_axis(x: Tensor, y: Tensor, debiased: bool) -> float:
    k, m = (_gram(v.double() - v.double().mean(1, keepdim=True)) for v in (x, y))
    return _ratio(k, m, _hollow_inner if debiased else _inner)


def _centring_matrix(x: Tensor, y: Tensor, debiased: bool) -> float:
    n = len(x)
    h = torch.eye(n, dtype=torch.float64, device=x.device) - 1 / (n - 1)
    k, m = (h @ _gram(v.double()) @ h for v in (x, y))
    return _ratio(k, m, _inner)


def _no_root(x: Tensor, y: Tensor, debiased: bool) -> float:
    k, m = _gram(_centred(x)), _gram(_centred(y))
    hsic = _song if debiased else _inner
    return float(hsic(k, m) / (hsic(k, k) * hsic(m, m)))


def _larger_norm(x: Tensor, y: Tensor, debiased: bool) -> float:
    k, m = _gram(_centred(x)), _gram(_centred(y))
    hsic = _song if debiased else _inner
    return float(hsic(k, m) / max(hsic(k, k), hsic(m, m)))


def _mixed(x: Tensor, y: Tensor, debiased: bool) -> float:
    k, m = _gram(_centred(x)), _gram(_centred(y))
    return float(_song(k, m) / torch.sqrt(_gretton(k, k) * _gretton(m, m)))


def _coefficient(of_n: Callable[[int], float]) -> Form:
    def value(x: Tensor, y: Tensor, debiased: bool) -> float:
        return _ratio(_gram(_centred(x)), _gram(_centred(y)), lambda k, m: _song(k, m, of_n(len(x))))

    return value


def _u_centred_by_n_minus_one(x: Tensor, y: Tensor, debiased: bool) -> float:
    def u(k: Tensor) -> Tensor:
        n, hollow = len(k), k - torch.diag(k.diag())
        means = hollow.sum(1) / (n - 1)
        centred = hollow - means - means[:, None] + hollow.sum() / (n - 1) ** 2
        return centred - torch.diag(centred.diag())

    return _ratio(u(_gram(_centred(x))), u(_gram(_centred(y))), _inner)


def _diagonal_kept(x: Tensor, y: Tensor, debiased: bool) -> float:
    def hsic(k: Tensor, m: Tensor) -> Tensor:
        n = len(k)
        one = torch.ones(n, dtype=torch.float64, device=k.device)
        total = torch.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return total - 2 / (n - 2) * (one @ k @ m @ one)

    return _ratio(_gram(x.double()), _gram(y.double()), hsic)


def _broadcast_diagonal(x: Tensor, y: Tensor, debiased: bool) -> float:
    def hsic(k: Tensor, m: Tensor) -> Tensor:
        n = len(k)
        one = torch.ones(n, dtype=torch.float64, device=k.device)
        k, m = k - k.diag(), m - m.diag()
        total = torch.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return total - 2 / (n - 2) * (one @ k @ m @ one)

    return _ratio(_gram(_centred(x)), _gram(_centred(y)), hsic)


def _off_diagonal(x: Tensor, y: Tensor, debiased: bool) -> float:
    return _ratio(_gram(_centred(x)), _gram(_centred(y)), _hollow_inner)


def _whitened(x: Tensor, y: Tensor, debiased: bool) -> float:
    bases = []
    for value in (x, y):
        u, s, _ = torch.linalg.svd(_centred(value), full_matrices=False)
        bases.append(u[:, s > 1e-9 * s[0]])
    return float((bases[0].T @ bases[1]).square().sum() / min(basis.shape[1] for basis in bases))


def _standardise(x: Tensor) -> Tensor:
    x = _centred(x)
    return x / x.std(0).clamp(min=1e-300)


def _unit_rows(x: Tensor) -> Tensor:
    lengths: Tensor = x.norm(dim=1, keepdim=True)
    return x / lengths


def _map(change: Callable[[float], float]) -> Form:
    return lambda x, y, debiased: change(float(textbook(x, y, debiased)))


def _rolled(x: Tensor, y: Tensor, debiased: bool) -> float:
    return float(textbook(x, y.roll(1, 0), debiased))


def _reversed(x: Tensor, y: Tensor, debiased: bool) -> float:
    return float(textbook(x, y.flip(0), debiased))


def _cut(x: Tensor, y: Tensor, debiased: bool) -> float:
    width = min(x.shape[1], y.shape[1])
    return float(textbook(x[:, :width], y[:, :width], debiased))


def _padded(rows: Callable[[Tensor], Tensor]) -> Form:
    return lambda x, y, debiased: float(textbook(rows(x), rows(y), debiased))


def _to_eight(x: Tensor) -> int:
    return -len(x) % 8


WRONG_FORMS: tuple[tuple[Cause, Form, tuple[bool, ...]], ...] = (
    (Cause.NOT_CENTRED, _not_centred, (False, True)),
    (Cause.NOT_CENTRED, _one_mean, (False, True)),
    (Cause.HALF_CENTRED, _half_centred, (False, True)),
    (Cause.WRONG_AXIS, _wrong_axis, (False, True)),
    (Cause.CENTRING_MATRIX, _centring_matrix, (False,)),
    (Cause.POWER, _no_root, (False, True)),
    (Cause.POWER, _map(lambda v: math.sqrt(abs(v))), (False, True)),
    (Cause.POWER, _map(lambda v: v * v), (False, True)),
    (Cause.NORMALISATION, _larger_norm, (False, True)),
    (Cause.DISTANCE, _map(lambda v: 1 - v), (False, True)),
    (Cause.DISTANCE, _map(lambda v: math.acos(max(-1.0, min(1.0, v)))), (False, True)),
    (Cause.CLAMP, _map(lambda v: max(0.0, min(1.0, v))), (True,)),
    (Cause.BIASED, lambda x, y, debiased: float(textbook(x, y, False)), (True,)),
    (Cause.MIXED, _mixed, (True,)),
    (Cause.COEFFICIENT, _coefficient(lambda n: 2 / (n - 1)), (True,)),
    (Cause.COEFFICIENT, _coefficient(lambda n: 1 / (n - 2)), (True,)),
    (Cause.COEFFICIENT, _coefficient(lambda n: 2 / n), (True,)),
    (Cause.COEFFICIENT, _u_centred_by_n_minus_one, (True,)),
    (Cause.DIAGONAL, _diagonal_kept, (True,)),
    (Cause.DIAGONAL, _broadcast_diagonal, (True,)),
    (Cause.DIAGONAL, _off_diagonal, (False, True)),
    (Cause.STANDARDISED, _of(_standardise), (False, True)),
    (Cause.STANDARDISED, _of(_unit_rows), (False, True)),
    (Cause.WHITENED, _whitened, (False, True)),
    (Cause.PAIRING, _rolled, (False, True)),
    (Cause.PAIRING, _reversed, (False, True)),
    (Cause.TRUNCATED, _cut, (False, True)),
    (Cause.ROWS, _padded(lambda v: torch.cat([v, v.new_zeros(_to_eight(v), v.shape[1])])), (False, True)),
    (Cause.ROWS, _padded(lambda v: torch.cat([v, v[-1:].expand(_to_eight(v), -1)])), (False, True)),
    (Cause.ROWS, _padded(lambda v: v.repeat(2, 1)), (True,)),
)
"""What implementations compute by mistake, with the estimators that can be mistaken so. An implementation that returns the
values of one of these on every probe has that fault."""
