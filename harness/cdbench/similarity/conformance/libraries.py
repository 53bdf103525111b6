"""Reference libraries that nobody here wrote, each behind one signature. Those that are installed are asked for a second opinion.

Each is used only where it is right: repsim's debiased estimate has biased norms below an unbiased numerator, and pytorch-cka
clamps, so it is asked only where the value is positive.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from torch import Tensor


@dataclass(frozen=True)
class Library:
    """A reference.

    Attributes:
        name: of the distribution.
        module: that it installs.
        value: (x, y, debiased) -> its CKA, from float64.
        estimators: for which it is right.
        negative: whether it can return a negative value.
    """

    name: str
    module: str
    value: Callable[[Tensor, Tensor, bool], float] = field(repr=False)
    estimators: tuple[bool, ...]
    negative: bool = True

    @property
    def installed(self) -> bool:
        """Whether it can be imported here, and is the library rather than a file of that name on the path."""
        try:
            home = metadata.distribution(self.name).locate_file("")
        except metadata.PackageNotFoundError:
            return False
        found = importlib.util.find_spec(self.module)
        return found is not None and Path(found.origin or "").is_relative_to(Path(str(home)))


def _rsatoolbox(x: Tensor, y: Tensor, debiased: bool) -> float:
    """Whitened cosine of squared-distance matrices: equal to linear CKA (Diedrichsen et al. 2021)."""
    from rsatoolbox.data import Dataset
    from rsatoolbox.rdm import calc_rdm, compare

    rdms = [calc_rdm(Dataset(value.numpy()), method="euclidean") for value in (x, y)]
    return float(compare(rdms[0], rdms[1], method="cosine_cov")[0, 0])


def _repsim(x: Tensor, y: Tensor, debiased: bool) -> float:
    import repsim

    return float(repsim.cka([x.numpy(), y.numpy()], kernel_type="linear", estimator="gretton")[0, 1])


def _ckatorch(x: Tensor, y: Tensor, debiased: bool) -> float:
    from ckatorch import cka_base

    return float(cka_base(x, y, "linear", unbiased=debiased))


def _pytorch_cka(x: Tensor, y: Tensor, debiased: bool) -> float:
    return float(importlib.import_module("cka").cka_from_features(x, y))


LIBRARIES: tuple[Library, ...] = (
    Library("rsatoolbox", "rsatoolbox", _rsatoolbox, (False,)),
    Library("repsim", "repsim", _repsim, (False,)),
    Library("ckatorch", "ckatorch", _ckatorch, (False, True)),
    Library("pytorch-cka", "cka", _pytorch_cka, (True,), negative=False),
)
