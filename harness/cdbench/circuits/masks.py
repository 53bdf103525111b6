"""Neuron masks per latent problem class (paper A, Method B: 4.2 and Appendix B; errata B1-B6).

Notation: n problems, K classes, D neurons (layers x neurons of a layer), masks [K, D] in (0, 1), activations [n, D],
assignment [n, K] one-hot rows with straight-through gradient.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from sklearn.cluster import KMeans
from torch import Tensor, nn

_TINY = 1e-12


class ProblemEncoder(nn.Module):
    """Concatenated embeddings of numbers, then a small classifier: [n, parts] of indices -> logits [n, K] (4.2.5).

    `sizes` is the vocabulary of each part, `widths` its embedding's width; (released) 64, 64, 128 for o1, o2, r and a
    classifier 256 -> 32 -> K.
    """

    def __init__(
        self, sizes: Sequence[int], widths: Sequence[int], hidden: int, classes: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # the constructors draw from the global generator; put it back
            self.embeddings = nn.ModuleList(nn.Embedding(a, b) for a, b in zip(sizes, widths, strict=True))
            self.classifier = nn.Sequential(nn.Linear(sum(widths), hidden), nn.ReLU(), nn.Linear(hidden, classes))
        draw(self, generator)

    def encode(self, parts: Tensor) -> Tensor:
        """The problem encoding φ(x), [n, sum of widths]."""
        return torch.cat([embedding(parts[:, i]) for i, embedding in enumerate(self.embeddings)], dim=1)

    def forward(self, parts: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.encode(parts))
        return logits


class ActivationEncoder(nn.Module):
    """A small classifier of activations: [n, width] -> logits [n, K] (4.2.1; the other reading of errata B1)."""

    def __init__(self, width: int, hidden: int, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.classifier = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, classes))
        draw(self, generator)

    def forward(self, activations: Tensor) -> Tensor:
        logits: Tensor = self.classifier(activations)
        return logits


class MaskGenerator(nn.Module):
    """Class embedding -> ReLU -> linear -> sigmoid: the masks of all classes, [K, D] (4.2.5; (released) width 4)."""

    def __init__(self, classes: int, neurons: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.embedding = nn.Embedding(classes, width)
            self.linear = nn.Linear(width, neurons)
        draw(self, generator)

    def forward(self) -> Tensor:
        return torch.sigmoid(self.linear(F.relu(self.embedding.weight)))


def draw(module: nn.Module, generator: torch.Generator) -> None:
    """torch's default initialisation, but from our own generator: N(0, 1) embeddings, uniform ±1/√fan_in layers."""
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Embedding):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
            elif isinstance(layer, nn.Linear):
                bound = layer.in_features**-0.5
                for parameter in (layer.weight, layer.bias):
                    parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) * bound)


def straight_through_classes(
    logits: Float[Tensor, "n k"], temperature: float, generator: torch.Generator
) -> Float[Tensor, "n k"]:
    """Straight-through Gumbel-Softmax (Jang et al. 2017): one-hot forward, the soft sample's gradient. [n, K]."""
    uniform = torch.rand(logits.shape, generator=generator).clamp(_TINY, 1 - 1e-7)
    soft = F.softmax((logits - torch.log(-torch.log(uniform))) / temperature, dim=-1)
    hard = F.one_hot(soft.argmax(-1), logits.shape[-1]).to(soft.dtype)
    return hard + soft - soft.detach()


def within_class_similarity(
    activations: Float[Tensor, "n d"],
    masks: Float[Tensor, "k d"],
    assignment: Float[Tensor, "n k"],
    *,
    as_printed: bool = False,
) -> Float[Tensor, ""]:
    """L_sim: minus the similarity of masked activations within a class, averaged over classes.

    Default: mean cosine over the N_k(N_k − 1) ordered pairs, classes with N_k < 2 skipped (errata B3). `as_printed`:
    Σ_d (Σ_i |a_i,d|)² / (N_k(N_k − 1)), which grows with the scale of the activations and includes i = j.
    """
    losses = []
    for k in range(masks.shape[0]):
        members = assignment[:, k]
        count = members.sum()
        if count.item() < 1.5:
            continue
        masked = activations * masks[k]
        if as_printed:
            total = (members[:, None] * masked.abs()).sum(0).square().sum()
        else:
            unit = members[:, None] * F.normalize(masked, dim=1, eps=_TINY)
            # The squared norm of the sum holds all ordered pairs and the diagonal; the diagonal is members².
            total = unit.sum(0).square().sum() - unit.square().sum()
        losses.append(-total / (count * (count - 1)))
    return torch.stack(losses).mean() if losses else activations.new_zeros(())


def class_usage_entropy(assignment: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """H(f) = −Σ f_k log f_k of the class frequencies. Subtract it from the loss: it prevents collapse (errata B2)."""
    frequencies = assignment.mean(0)
    return -(frequencies * (frequencies + _TINY).log()).sum()


def mask_sparsity_loss(masks: Float[Tensor, "k d"]) -> Float[Tensor, ""]:
    """L_sparsity: mean binary entropy of the mask entries; 0 when every entry is 0 or 1."""
    m = masks.clamp(1e-7, 1 - 1e-7)
    return -(m * m.log() + (1 - m) * (1 - m).log()).mean()


def kl_to_prior(masks: Float[Tensor, "k d"], prior: float) -> Float[Tensor, ""]:
    """L_KL: KL of the mean mask value to a Bernoulli prior π."""
    mean = masks.mean()
    return mean * (mean / prior).log() + (1 - mean) * ((1 - mean) / (1 - prior)).log()


def mask_overlap_loss(masks: Float[Tensor, "k d"], *, as_printed: bool = False) -> Float[Tensor, ""]:
    """L_mask-sim: mean cosine of the masks of two different classes (errata B4); `as_printed`: their dot product."""
    vectors = masks if as_printed else F.normalize(masks, dim=1, eps=_TINY)
    gram = vectors @ vectors.T
    k = len(masks)
    return (gram.sum() - gram.diagonal().sum()) / (k * (k - 1))


def k_selection_curve(encodings: Float[Tensor, "n d"], largest: int, seed: int) -> list[float]:
    """Average cosine distance to the k-means centroid for k = 1 … `largest` (paper A, 4.2.2, figure 1).

    Rows are normalised first, so that Euclidean k-means minimises what is reported.
    """
    unit = F.normalize(encodings.double(), dim=1).numpy()
    distances = []
    for k in range(1, min(largest, len(unit)) + 1):
        fitted = KMeans(k, n_init=4, random_state=seed % 2**32).fit(unit)
        centroids = fitted.cluster_centers_[fitted.labels_]
        norms = np.linalg.norm(centroids, axis=1).clip(min=_TINY)
        distances.append(float(np.mean(1 - (unit * centroids).sum(1) / norms)))
    return distances
