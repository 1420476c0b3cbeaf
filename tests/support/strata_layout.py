"""Values of seeds and prompts drawn from known variances."""

import numpy as np


def layout(rng, seeds, prompts, between_seeds, between_prompts, rest):
    """Gaussian values of mean 0, shape (S, C), whose mean has the given variance by part."""
    return (
        rng.normal(0, np.sqrt(between_seeds * seeds), (seeds, 1))
        + rng.normal(0, np.sqrt(between_prompts * prompts), (1, prompts))
        + rng.normal(0, np.sqrt(rest * seeds * prompts), (seeds, prompts))
    )
