"""Student's t distribution for real degrees of freedom; scipy would be a dependency for this alone."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

# With t = sqrt(degrees) tan(a) the density of |t| is that of cos(a)^(degrees - 1) over this finite range.
_ANGLES = np.linspace(0.0, np.pi / 2, 200_001)


@lru_cache(maxsize=1024)
def student_quantile(probability: float, degrees: float) -> float:
    """Quantile of Student's t to six digits, for a probability of at least 1/2 and at least one degree of freedom."""
    return float(student_critical(2 * (1 - probability), degrees))


def student_critical(alpha: ArrayLike, degrees: float) -> NDArray[np.float64]:
    """The value that |t| exceeds with probability `alpha`.

    Args:
        alpha: two-sided probabilities in (0, 1], any shape.
        degrees: degrees of freedom, at least 1.

    Returns:
        The shape of `alpha`; 0 where it is 1.
    """
    density = np.cos(_ANGLES) ** (degrees - 1)
    steps = density[1:] + density[:-1]
    beyond = np.append(np.cumsum(steps[::-1])[::-1], 0.0)  # mass above each angle; summed from the tail, which is small
    angle = np.interp(alpha, beyond[::-1] / beyond[0], _ANGLES[::-1])
    return np.sqrt(degrees) * np.tan(angle)
