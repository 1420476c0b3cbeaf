"""The preference methods: pure functions of log-probabilities, one value an example, nothing averaged.

`logratio` is log pi - log pi_ref, `logp` is log pi, both summed over the tokens of a response, its end token included,
in nats; `length` counts those tokens. All are of shape (B,).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dpo(chosen_logratio: Tensor, rejected_logratio: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta (chosen - rejected)), shape (B,).

    Source: Rafailov et al. 2023, Eq. 7.
    """
    return -F.logsigmoid(beta * (chosen_logratio - rejected_logratio))


def ipo(
    chosen_logratio: Tensor, rejected_logratio: Tensor, chosen_length: Tensor, rejected_length: Tensor, beta: float
) -> Tensor:
    """Squared distance of the difference of mean log ratios from 1 / (2 beta), shape (B,).

    Source: Azar et al. 2023, Eq. 17, with log ratios averaged over tokens, as its authors confirmed to TRL.
    """
    difference = chosen_logratio / chosen_length - rejected_logratio / rejected_length
    return (difference - 1 / (2 * beta)) ** 2


def simpo(
    chosen_logp: Tensor,
    rejected_logp: Tensor,
    chosen_length: Tensor,
    rejected_length: Tensor,
    beta: float,
    gamma_over_beta: float,
) -> Tensor:
    """-log sigmoid(beta (difference of mean log-probabilities - gamma / beta)), shape (B,); there is no reference.

    Source: Meng et al. 2024, Eq. 6.
    """
    difference = chosen_logp / chosen_length - rejected_logp / rejected_length
    return -F.logsigmoid(beta * (difference - gamma_over_beta))


def wpo_weight(chosen_exponent: Tensor, rejected_exponent: Tensor) -> Tensor:
    """How likely the policy itself is to write the pair, at most 1, without gradient, shape (B,).

    Args:
        chosen_exponent: mean over tokens of log p(token) - log sum_v p(v)^2, shape (B,).
        rejected_exponent: likewise.

    Source: Zhou et al. 2024, Eq. 2 with sampled alignment; the clamp is the authors' code's.
    """
    return (chosen_exponent + rejected_exponent).exp().clamp(max=1).detach()


def kto_kl(mismatched_logratio: Tensor) -> Tensor:
    """Estimate of KL(pi || pi_ref) from mismatched responses: their mean log ratio, at least 0, without gradient.

    Source: Ethayarajh et al. 2024, section 4.1.
    """
    return mismatched_logratio.mean().clamp(min=0).detach()


def kto(
    logratio: Tensor, desirable: Tensor, kl: Tensor, beta: float, desirable_weight: float, undesirable_weight: float
) -> Tensor:
    """lambda_D (1 - sigmoid(beta (logratio - kl))) or lambda_U (1 - sigmoid(beta (kl - logratio))), shape (B,).

    Args:
        logratio: of each response, shape (B,).
        desirable: True where it is desirable, shape (B,).
        kl: from `kto_kl`, a scalar.
        beta: scale of the implicit reward.
        desirable_weight, undesirable_weight: lambda_D and lambda_U.

    Source: Ethayarajh et al. 2024, Eq. 8.
    """
    sign = torch.where(desirable, 1.0, -1.0)
    weight = torch.where(desirable, desirable_weight, undesirable_weight)
    return weight * (1 - torch.sigmoid(beta * sign * (logratio - kl)))
