"""Proxy entropies of gradients, and how similar the gradients of two layers are (E²LoRA, LSS).

A gradient is described by a Gaussian with its mean and standard deviation σ. Its proxy entropy is
H = log σ + ½ log 2π + ½.

The relative mutual information of two gradients is RMI = (H_i + H_j - H_cat) / min(H_i, H_j), where H_cat is the
entropy of both gradients concatenated. For means near 0 and ρ = σ_min / σ_max it is 1 + d / H_min with
d = ½ log(2 / (1 + ρ²)). So RMI sees the two scales only. It lies in [0, 1] and falls with dissimilarity as long as
H_min < -½ log 2; otherwise it can be negative, explode, or grow with dissimilarity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from .gradients import GradientStatistics

GAUSSIAN = 0.5 * math.log(2 * math.pi) + 0.5
"""The entropy of a Gaussian with σ = 1."""
RMI_LIMIT = -0.5 * math.log(2)
"""The smaller entropy of two gradients must be below this value for RMI to be a similarity."""


def proxy_entropy(sigma: float) -> float:
    """Return H = log σ + ½ log 2π + ½."""
    return math.log(sigma) + GAUSSIAN


def relative_mutual_information(first: GradientStatistics, second: GradientStatistics) -> float:
    """Return RMI, as the paper defines it.

    Raises:
        ValueError: the smaller entropy is not below -½ log 2, where RMI is no similarity. The message names the module
            and the option that helps.
    """
    entropies = proxy_entropy(first.sigma), proxy_entropy(second.sigma)
    smaller = min(entropies)
    if smaller >= RMI_LIMIT:
        module = first.module if entropies[0] == smaller else second.module
        raise ValueError(
            f"the gradient of {module} has proxy entropy {smaller:.4f}, and RMI is a similarity only below "
            f"{RMI_LIMIT:.4f} (σ < 0.171): use similarity=rmi_scale_free, and check that no loss scale is left in."
        )
    return (sum(entropies) - proxy_entropy(first.joined(second).sigma)) / smaller


def scale_free_similarity(first: GradientStatistics, second: GradientStatistics) -> float:
    """Return log₂(1 + ρ²) with ρ = σ_min / σ_max, in (0, 1]. It is 1 for equal scales, and a common scale cancels."""
    low, high = sorted((first.sigma, second.sigma))
    return math.log2(1 + (low / high) ** 2)


def negative_kl(first: GradientStatistics, second: GradientStatistics) -> float:
    """Return minus the symmetric Kullback-Leibler divergence ½ (KL(i‖j) + KL(j‖i)) of the two Gaussians."""
    gap = (first.mean - second.mean) ** 2
    one, two = first.sigma**2, second.sigma**2
    return -0.25 * ((one + gap) / two + (two + gap) / one - 2)


def negative_l2(first: GradientStatistics, second: GradientStatistics) -> float:
    """Return minus the L2 distance √∫(p - q)² of the densities of the two Gaussians."""
    one, two = first.sigma, second.sigma
    spread = one**2 + two**2
    overlap = math.exp(-((first.mean - second.mean) ** 2) / (2 * spread)) / math.sqrt(2 * math.pi * spread)
    squared = (1 / one + 1 / two) / (2 * math.sqrt(math.pi)) - 2 * overlap
    return -math.sqrt(max(squared, 0.0))


def negative_l1(first: GradientStatistics, second: GradientStatistics) -> float:
    """Return minus the L1 distance ∫|p - q| of the densities of the two Gaussians, in [-2, 0]."""
    narrow, wide = sorted((first, second), key=lambda one: one.sigma)
    gap = wide.mean - narrow.mean
    if narrow.sigma == wide.sigma:
        return -2 * math.erf(abs(gap) / (2 * math.sqrt(2) * narrow.sigma))
    # The densities cross where a z² + b z + c = 0, with z = (x - the mean of the narrow one) / its σ.
    ratio, shift = narrow.sigma / wide.sigma, gap / wide.sigma
    a, b, c = 1 - ratio**2, 2 * ratio * shift, -(shift**2) + 2 * math.log(ratio)
    root = math.sqrt(b**2 - 4 * a * c)
    low, high = (-b - root) / (2 * a), (-b + root) / (2 * a)
    inside = _normal(high) - _normal(low)
    of_wide = _normal(ratio * high - shift) - _normal(ratio * low - shift)
    return -2 * (inside - of_wide)


def cosine_similarity(first: GradientStatistics, second: GradientStatistics) -> float:
    """Return the absolute cosine of the paired elements of the two gradients.

    Raises:
        ValueError: the gradients were not kept, or have different shapes.
    """
    if first.gradient is None or second.gradient is None:
        raise ValueError("similarity=cosine needs the gradients: compute the statistics with keep=True.")
    if first.gradient.shape != second.gradient.shape:
        raise ValueError(f"similarity=cosine: {first.module} and {second.module} have weights of different shapes.")
    one, two = first.gradient.flatten().double(), second.gradient.flatten().double()
    norms = one.norm() * two.norm()
    return float((one @ two).abs() / norms) if norms > 0 else 0.0


SIMILARITY: Mapping[str, Callable[[GradientStatistics, GradientStatistics], float]] = {
    "rmi": relative_mutual_information,
    "rmi_scale_free": scale_free_similarity,
    "cosine": cosine_similarity,
    "l1": negative_l1,
    "l2": negative_l2,
    "kl": negative_kl,
}


def similarity_matrix(layers: Sequence[GradientStatistics], name: str) -> list[list[float]]:
    """Return the similarity of each pair of layers; a layer's similarity to itself is 0 and means nothing.

    Raises:
        ValueError: a similarity is not defined for two of the layers.
    """
    similarity = SIMILARITY[name]
    matrix = [[0.0] * len(layers) for _ in layers]
    for i, first in enumerate(layers):
        for j in range(i + 1, len(layers)):
            matrix[i][j] = matrix[j][i] = similarity(first, layers[j])
    return matrix


def _normal(value: float) -> float:
    """Return the distribution function of the standard normal distribution."""
    return 0.5 * (1 + math.erf(value / math.sqrt(2)))
