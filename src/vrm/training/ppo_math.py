"""The mathematics of PPO: pure functions of tensors.

Rows are responses, columns their tokens, padded on the right: everything is of shape (B, T) with a mask that is 1 on
real tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_STD = 1e-6


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens, a scalar."""
    return (x * mask).sum() / mask.sum()


def whiten(x: Tensor, mask: Tensor, mean: Tensor | None = None, variance: Tensor | None = None) -> Tensor:
    """Mean 0 and variance 1 over real tokens, 0 on padding, shape (B, T).

    Args:
        x: values, shape (B, T).
        mask: 1 on real tokens.
        mean, variance: those to use, where `x` is one process's part of a batch; None takes those of `x`.
    """
    mean = masked_mean(x, mask) if mean is None else mean
    variance = masked_mean((x - mean) ** 2, mask) if variance is None else variance
    return (x - mean) * (variance + SMALLEST_STD**2).rsqrt() * mask


def token_rewards(score: Tensor, logratio: Tensor, mask: Tensor, kl_coefficient: float) -> Tensor:
    """Reward of each token: minus the KL penalty, and the response's score on its last token.

    Args:
        score: of each response, shape (B,).
        logratio: log pi - log pi_ref of each token, shape (B, T).
        mask: 1 on real tokens; every row has one.
        kl_coefficient: weight of the penalty, in score units a nat.

    Source: Ouyang et al. 2022, Eq. 2, with the penalty paid token by token.
    """
    rewards = -kl_coefficient * logratio * mask
    last = mask.sum(1).long() - 1
    return rewards.scatter_add(1, last[:, None], score[:, None].to(rewards.dtype))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and returns, both (B, T), 0 on padding.

    Args:
        rewards: of each token, shape (B, T).
        values: V(s_t) before each token, shape (B, T); after a response's last token it is 0.
        mask: 1 on real tokens.
        gamma: discount a token.
        gae_lambda: 0 gives one-step errors, 1 whole returns less the value.

    Source: Schulman et al. 2016, Eq. 16.
    """
    rewards, values = rewards * mask, values * mask
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    after = torch.zeros_like(running)
    for t in range(rewards.shape[1] - 1, -1, -1):
        error = rewards[:, t] + gamma * after - values[:, t]
        running = (error + gamma * gae_lambda * running) * mask[:, t]
        advantages[:, t], after = running, values[:, t]
    return advantages, (advantages + values) * mask


def policy_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """Clipped surrogate of each token and whether the clip was active, both (B, T), 0 on padding.

    Source: Schulman et al. 2017, Eq. 7.
    """
    ratio = (log_probs - old_log_probs).exp()
    free, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(free, clipped) * mask, (clipped > free).float() * mask


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float) -> Tensor:
    """Half the squared error of each token, of the worse of the new value and the clipped one, shape (B, T).

    Source: Schulman et al. 2017's code; Huang et al. 2022, "The 37 Implementation Details of PPO".
    """
    near = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2) * mask


def approximate_kl(log_change: Tensor) -> Tensor:
    """KL(old || new) of each token, nats, never negative: exp(d) - 1 - d with d = log pi_new - log pi_old.

    Source: Schulman, "Approximating KL Divergence" (2020), the estimator k3.
    """
    return log_change.expm1() - log_change


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over real tokens, a scalar; NaN where returns do not vary."""
    real = mask.bool()
    target = returns[real]
    left = (returns - values)[real].var(unbiased=False)
    # equal numbers may have a variance of 1e-17, because their mean is rounded
    constant = target.max() == target.min()
    return torch.where(constant, torch.nan, 1 - left / target.var(unbiased=False))


class RunningMoments:
    """Mean and standard deviation of all values so far."""

    def __init__(self) -> None:
        self.mean = self.squares = 0.0
        self.count = 0

    @property
    def std(self) -> float:
        """Population standard deviation; 1 before there are two values."""
        return (self.squares / self.count) ** 0.5 if self.count > 1 else 1.0

    def update(self, values: Tensor) -> None:
        """Take in values of any shape. Source: Chan, Golub and LeVeque 1983."""
        values = values.detach().double().flatten()
        count, mean = values.numel(), values.mean().item()
        change, total = mean - self.mean, self.count + count
        self.squares += ((values - mean) ** 2).sum().item() + change**2 * self.count * count / total
        self.mean += change * count / total
        self.count = total

    def normalise(self, values: Tensor) -> Tensor:
        """(values - mean) / std."""
        return (values - self.mean) / max(self.std, SMALLEST_STD)

    def state_dict(self) -> dict[str, float]:
        """Plain numbers, for a JSON file."""
        return {"mean": self.mean, "squares": self.squares, "count": self.count}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from `state_dict`."""
        self.mean, self.squares, self.count = state["mean"], state["squares"], int(state["count"])
