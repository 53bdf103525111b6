"""How often the intervals of reports and boards cover what they are of, by simulation at 1,000 problems.

    python benchmarks/coverage.py [--repeats 4000]

Rows answer each problem by its difficulty and their seed's luck (logistic), on one seed and on more, with more or less luck.

- difference: of two equally good rows, paired; beside it the hierarchical bootstrap, which decides nothing (at most 500 repeats);
- accuracy: of one row;
- drop: the same seeds on 1,000 problems and on 500 harder ones;
- published: from a share that somebody measured on 1,000 problems of his own.

Each is promised to cover 95 %. The standard error of a figure is 0.3 points at 4,000 repeats, and 1 of the bootstrap's.
"""

import argparse
import math
from collections.abc import Callable, Iterator

import numpy as np
from machine import save

from cdbench.inference import (
    Hits,
    Interval,
    drop,
    hierarchical_bootstrap,
    interval_from_published,
    mean_interval,
    share_interval,
)
from cdbench.seeds import seed_for

SETTINGS = [
    (1, 0.0),
    (2, 0.0),
    (2, 0.1),
    (2, 0.5),
    (3, 0.0),
    (3, 0.1),
    (3, 0.5),
    (5, 0.3),
    (10, 0.0),
    (10, 0.3),
    (20, 0.3),
]
N = 1000
OF_PROBLEMS = 1.5
BOOTSTRAPS = 500


def answered(rng: np.random.Generator, level: float, skill: np.ndarray, hard: np.ndarray) -> Hits:
    """[seeds, problems] 1 where a seed of that skill solves a problem so hard."""
    chances: Hits = 1 / (1 + np.exp(-(level + skill[:, None] + hard)))
    return (rng.random(chances.shape) < chances).astype(np.float64)


def truth(level: float, *spreads: float) -> float:
    """Accuracy over all problems and seeds, by Gauss and Hermite."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    return float(weights @ (1 / (1 + np.exp(-(level + math.hypot(*spreads) * nodes)))) / weights.sum())


def differences(rng: np.random.Generator, seeds: int, luck: float) -> Hits:
    """Of two equally good rows on the same problems."""
    hard = OF_PROBLEMS * rng.standard_normal(N)
    first, second = (answered(rng, 0.5, luck * rng.standard_normal(seeds), hard) for _ in range(2))
    return first - second


def of_difference(rng: np.random.Generator, seeds: int, luck: float) -> tuple[float, Interval]:
    """The truth, and an interval."""
    return 0.0, mean_interval(differences(rng, seeds, luck))


def of_bootstrap(rng: np.random.Generator, seeds: int, luck: float) -> tuple[float, Interval]:
    """The same by the bootstrap."""
    return 0.0, hierarchical_bootstrap(differences(rng, seeds, luck), rng, 1000)


def of_accuracy(rng: np.random.Generator, seeds: int, luck: float) -> tuple[float, Interval]:
    """Of one row."""
    hits = answered(rng, 1.5, luck * rng.standard_normal(seeds), OF_PROBLEMS * rng.standard_normal(N))
    return truth(1.5, OF_PROBLEMS, luck), share_interval(hits)


def of_drop(rng: np.random.Generator, seeds: int, luck: float) -> tuple[float, Interval]:
    """The second problems are harder for every seed, for some more so."""
    skill = luck * rng.standard_normal(seeds)
    home = answered(rng, 2.5, skill, OF_PROBLEMS * rng.standard_normal(N))
    far = answered(rng, 0.3, skill + luck * rng.standard_normal(seeds), OF_PROBLEMS * rng.standard_normal(N // 2))
    lost = truth(2.5, OF_PROBLEMS, luck) - truth(0.3, OF_PROBLEMS, luck * math.sqrt(2))
    value, found = drop(home, far)
    return lost, found.around(value)


def of_published(rng: np.random.Generator, seeds: int, luck: float) -> tuple[float, Interval]:
    """From that one published model: of how far seeds of its method differ nothing was published."""
    share = truth(2.5, OF_PROBLEMS)
    hits = answered(rng, 2.5, luck * rng.standard_normal(seeds), OF_PROBLEMS * rng.standard_normal(N))
    gap = truth(2.5, OF_PROBLEMS, luck) - share
    return gap, interval_from_published(hits, rng.binomial(N, share) / N, N)


KINDS: dict[str, Callable[[np.random.Generator, int, float], tuple[float, Interval]]] = {
    "difference": of_difference,
    "accuracy": of_accuracy,
    "drop": of_drop,
    "published": of_published,
    "bootstrap": of_bootstrap,
}


def covered(kind: str, seeds: int, luck: float, repeats: int) -> float:
    """The share of intervals that hold the truth."""
    rng = np.random.default_rng(seed_for("coverage", kind, seeds, int(100 * luck)))

    def hits() -> Iterator[bool]:
        for _ in range(repeats):
            value, (low, high) = KINDS[kind](rng, seeds, luck)
            yield low <= value <= high

    return sum(hits()) / repeats


def main() -> None:
    """Prints a table and writes results/coverage.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4000)
    repeats = parser.parse_args().repeats
    rows = []
    for seeds, luck in SETTINGS:
        few = {"bootstrap": min(repeats, BOOTSTRAPS)}
        found = {kind: round(covered(kind, seeds, luck, few.get(kind, repeats)), 4) for kind in KINDS}
        rows.append({"seeds": seeds, "luck": luck, **found})
        print(f"{seeds:>2} seeds, luck {luck:.1f}:", "  ".join(f"{kind} {share:.1%}" for kind, share in found.items()))
    save("coverage", {"problems": N, "repeats": repeats, "bootstraps": min(repeats, BOOTSTRAPS), "covered": rows})


if __name__ == "__main__":
    main()
