"""Centered kernel alignment: estimators, the all-pairs matrix, streaming; `conformance` tests them, and anybody else's."""

from cdbench.similarity.hsic import biased_hsic, debiased_hsic
from cdbench.similarity.linear import linear_cka
from cdbench.similarity.matrix import CkaMatrices, cka_matrices, cka_matrix
from cdbench.similarity.minibatch import MinibatchCKA
from cdbench.similarity.rbf import rbf_cka
from cdbench.similarity.rows import sample_rows
from cdbench.similarity.streaming import StreamingCKA

__all__ = [
    "CkaMatrices",
    "MinibatchCKA",
    "StreamingCKA",
    "biased_hsic",
    "cka_matrices",
    "cka_matrix",
    "debiased_hsic",
    "linear_cka",
    "rbf_cka",
    "sample_rows",
]
