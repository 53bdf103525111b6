"""Centered kernel alignment: estimators and the all-pairs matrix."""

from cdbench.similarity.linear import cka_matrix, linear_cka

__all__ = ["cka_matrix", "linear_cka"]
