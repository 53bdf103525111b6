"""The counterexample to "CKA is invariant to invertible linear transformations" (paper A, 2.3 and 4.1.4; errata A1)."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def stretched(cka: Callable[[Tensor, Tensor], float], d: int = 64, kappa: float = 10.0) -> tuple[float, float]:
    """X with d orthonormal centred columns against XA, A = diag(κ, 1, …, 1): invertible, condition number κ.

    Args:
        cka: the biased linear CKA of two [n, d] float64 tensors.
        d: columns.
        kappa: by how much the first is stretched.

    Returns:
        CKA(X, XA) as `cka` has it, and (κ²+d−1)/√(d(κ⁴+d−1)) from the definition: 1 only for κ = 1.
    """
    raw = np.random.default_rng(0).standard_normal((200, d))
    x = torch.from_numpy(np.linalg.qr(raw - raw.mean(0))[0])
    scales = torch.ones(d, dtype=torch.float64)
    scales[0] = kappa
    return cka(x, x * scales), (kappa**2 + d - 1) / math.sqrt(d * (kappa**4 + d - 1))
