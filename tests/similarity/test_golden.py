"""The golden values again: exact rational arithmetic from the triple sums, a root in 60 digits, one rounding."""

import json
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path

import pytest

from cdbench.similarity import conformance
from cdbench.similarity.conformance.laws import golden_values

Rows = list[list[float]]
Matrix = list[list[Fraction]]


def centred_gram(x: Rows) -> Matrix:
    n = len(x)
    means = [sum(Fraction(row[j]) for row in x) / n for j in range(len(x[0]))]
    rows = [[Fraction(v) - m for v, m in zip(row, means, strict=True)] for row in x]
    return [[sum((a * b for a, b in zip(p, q, strict=True)), Fraction(0)) for q in rows] for p in rows]


def biased(k: Matrix, m: Matrix) -> Fraction:
    return sum((a * b for r, s in zip(k, m, strict=True) for a, b in zip(r, s, strict=True)), Fraction(0))


def song(k: Matrix, m: Matrix) -> Fraction:
    """Song et al. 2012, eq. 4: sums over pairs, pairs of pairs and triples of different samples, n(n−3) times."""
    n, every = len(k), range(len(k))
    pairs = sum(k[i][j] * m[i][j] for i in every for j in every if i != j)
    sums = [sum(v[i][j] for i in every for j in every if i != j) for v in (k, m)]
    triples = sum(k[i][j] * m[j][q] for i in every for j in every for q in every if i != j and j != q)
    return pairs + sums[0] * sums[1] / Fraction((n - 1) * (n - 2)) - Fraction(2, n - 2) * triples


@pytest.mark.parametrize("entry", golden_values(), ids=lambda entry: entry["name"])
def test_golden_values_are_the_exact_ones(entry: dict) -> None:
    k, m = centred_gram(entry["x"]), centred_gram(entry["y"])
    for name, hsic in (("biased", biased), ("debiased", song)):
        with localcontext() as context:
            context.prec = 60
            cross, one, two = (
                Decimal(f.numerator) / Decimal(f.denominator) for f in (hsic(k, m), hsic(k, k), hsic(m, m))
            )
            assert float(cross / (one * two).sqrt()) == entry[name]


def test_the_file_says_how_its_values_were_computed() -> None:
    file = Path(conformance.__file__).parent / "golden.json"
    assert "exact rational arithmetic" in json.loads(file.read_text())["how"]
