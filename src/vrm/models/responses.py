"""What a policy says of the tokens of responses: its log-probabilities, and a critic's values, one a token.

* N texts go through a model as a batch of responses (`batch_responses`), and come back as a row a response
  (`response_outputs`, `response_values`), whatever the batch is made of.
* A policy that `share_prefixes` has prepared gets packed rows: nothing is padded, and the prompt stands once for all of
  its responses. Each of these then begins with the prompt's last token, so that what predicts a token stands before it,
  as the head of a causal LM has it. A family that can't share has a padded row a text.
* The (R, W, V) logits are never in memory: a causal LM is patched once with TRL's fused head, then answers `model(...,
  labels=..., fused_lm_head=True)` with what was asked for a token, and everything else, generation included, as before.
* On a CPU, TRL's head is a loop over tiles that computes each of them a second time for the gradient. Where the logits
  of a packed row's response tokens are few, they are computed once and kept: 2.5 times as fast for a small vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import wraps
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from vrm.models.shared_prefix import UNREAD, Kernel, PromptGroup, pack, same_prompts

NOT_INPUTS = {"labels", "at", "response_mask"}
"""What a batch of responses has beside the model's inputs."""


def fuse_head(model: PreTrainedModel, *outputs: str, temperature: float = 1.0) -> PreTrainedModel:
    """Give a causal LM the fused head; adapters may be on it, the head itself is never adapted.

    Args:
        model: the model; it is returned.
        outputs: what is computed a token beside `log_probs`: `entropy`, `log_sum_sq_probs`.
        temperature: what logits are divided by.
    """
    from trl.trainer import utils  # TRL takes seconds to import, and reward models need none of it

    if hasattr(utils, "_use_triton"):
        # TRL computes prompts and padding too where tile shapes must not change, which is two thirds of a preference
        # training on a CPU: there nothing is compiled, and response tokens alone do. Its kernels ask for themselves
        utils._use_triton = lambda device: device.type in ("cpu", "cuda", "xpu")
    inner = _inner(model)
    utils.add_fused_lm_head(inner, temperature=temperature, outputs=("log_probs", *outputs))
    inner.forward = _with_few_logits(inner, outputs, temperature)
    return model


FEW_LOGITS = 2**25
"""Logits of a row that may be in memory on a CPU: 128 MiB, and as much for each of their softmax and its gradient."""


class TokenOutputs(NamedTuple):
    """What a head says of R x (W - 1) tokens, 0 where nothing was asked; see `ResponseOutputs`."""

    log_probs: Tensor
    entropy: Tensor | None
    log_sum_sq_probs: Tensor | None


def _with_few_logits(model: PreTrainedModel, outputs: Sequence[str], temperature: float) -> Any:
    """The forward function of a causal LM with TRL's head, which on a CPU is passed by where there are few logits."""
    tiled = model.forward.__func__

    @wraps(tiled)  # `generate` reads the signature
    def forward(
        self: Any,
        *args: Any,
        fused_lm_head: bool = False,
        labels: Tensor | None = None,
        log_probs_alone: bool = False,
        **kwargs: Any,
    ) -> Any:
        few = fused_lm_head and labels.device.type == "cpu" and len(labels) == 1
        asked = labels[:, 1:] != -100 if few else None
        if not few or int(asked.sum()) * self.config.get_text_config().vocab_size > FEW_LOGITS:
            return tiled(self, *args, fused_lm_head=fused_lm_head, labels=labels, **kwargs)
        kept = asked[0].nonzero().squeeze(1)
        logits = tiled(self, *args, logits_to_keep=kept, use_cache=False, **kwargs).logits[0]  # (tokens, V)
        log_p = (logits.float() / temperature).log_softmax(-1)
        found = {"log_probs": log_p.gather(-1, labels[:, 1:][asked].unsqueeze(-1)).squeeze(-1)}
        with torch.no_grad():
            if "entropy" in outputs and not log_probs_alone:
                found["entropy"] = -(log_p.exp() * log_p).sum(-1)
            if "log_sum_sq_probs" in outputs and not log_probs_alone:
                found["log_sum_sq_probs"] = (2 * log_p).logsumexp(-1)
        whole = {name: value.new_zeros(asked.shape).masked_scatter(asked, value) for name, value in found.items()}
        return TokenOutputs(**dict.fromkeys(TokenOutputs._fields) | whole)

    return MethodType(forward, model)  # a method, so that a copy of the model computes with its own weights


def ensure_fused_head(model: PreTrainedModel) -> PreTrainedModel:
    """Give a causal LM the fused head, unless its trainer has: that one may compute more, and is not taken away."""
    return model if "forward" in vars(_inner(model)) else fuse_head(model)


def _inner(model: PreTrainedModel) -> PreTrainedModel:
    """The model below adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def batch_responses(
    texts: Sequence[tuple[Sequence[int], int]],
    pad_token_id: int,
    kernel: Kernel | None = None,
    tokens_per_row: int | None = None,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """N texts with responses of up to T tokens as one batch for a policy or a critic.

    Args:
        texts: token ids, and how many of them are the prompt's, at least one.
        pad_token_id: fills rows up.
        kernel: of packed rows, see `pack`; None pads, a row a text.
        tokens_per_row: budget of a packed row.
        device: of all tensors; None: the CPU.

    Returns:
        The model's inputs, R rows of W columns; `labels`, the ids of response tokens and -100 elsewhere, (R, W); `at`,
        which of the model's R * (W - 1) outputs is of which response token, (N, T); `response_mask`, likewise, 1 on
        real ones.

    Raises:
        ValueError: a text has no prompt.
    """
    for number, (_, length) in enumerate(texts):
        if length < 1:
            raise ValueError(f"text {number} has no prompt: nothing predicts its first token")
    inputs, ends = (
        _padded(texts, pad_token_id) if kernel is None else _packed(texts, pad_token_id, kernel, tokens_per_row)
    )
    labels = torch.full_like(inputs["input_ids"], -100)
    width = labels.shape[1]
    places = []
    for (ids, length), (row, end) in zip(texts, ends, strict=True):
        first = end - (len(ids) - length)
        labels[row, first:end] = torch.tensor(ids[length:])
        # column t of the outputs belongs to token t + 1
        places.append(torch.arange(first, end) + row * (width - 1) - 1)
    mask = pad_sequence([torch.ones(len(place)) for place in places], batch_first=True)
    batch = {**inputs, "labels": labels, "at": pad_sequence(places, batch_first=True), "response_mask": mask}
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def _padded(
    texts: Sequence[tuple[Sequence[int], int]], pad_token_id: int
) -> tuple[dict[str, Any], list[tuple[int, int]]]:
    """Inputs, and the row and last column, plus one, of each text."""
    rows = [torch.tensor(ids) for ids, _ in texts]
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    ids = pad_sequence(rows, batch_first=True, padding_value=pad_token_id)
    return {"input_ids": ids, "attention_mask": mask}, [(row, len(text)) for row, (text, _) in enumerate(texts)]


def _packed(
    texts: Sequence[tuple[Sequence[int], int]], pad_token_id: int, kernel: Kernel, tokens_per_row: int | None
) -> tuple[dict[str, Any], list[tuple[int, int]]]:
    """Likewise, with what a model needs that shares prefixes."""
    groups, members = [], []
    for found in same_prompts(texts):
        length = texts[found[0]][1]
        # a prompt of one token has none that stands before it, and is not shared
        for part in [found] if length > 1 else [[number] for number in found]:
            shared = length - 1 if len(part) > 1 else length
            groups.append(PromptGroup(texts[part[0]][0][:shared], [texts[number][0][shared:] for number in part]))
            members.append(part)
    packed = pack(groups, pad_token_id, tokens_per_row, kernel=kernel)
    ends = {}
    for part, place in zip(members, packed.layout.places, strict=True):
        at = place.start + place.prompt
        for number, tokens in zip(part, place.responses, strict=True):
            at += tokens
            ends[number] = (place.row, at)
    return packed.inputs() | {"attention_mask": UNREAD}, [ends[number] for number in range(len(texts))]


class ResponseOutputs(NamedTuple):
    """What a policy says of each token of N responses given what is before it, 0 on padding, shape (N, T) each.

    Args:
        log_probs: nats.
        entropy: before the token, nats; None: it was not asked for.
        log_sum_sq_probs: log of the sum of all squared probabilities; likewise.
        mask: 1.0 on real tokens.
    """

    log_probs: Tensor
    entropy: Tensor | None
    log_sum_sq_probs: Tensor | None
    mask: Tensor


def response_outputs(model: torch.nn.Module, batch: Mapping[str, Any]) -> ResponseOutputs:
    """What a policy with a fused head says of a batch of responses.

    Args:
        model: wrapped or not.
        batch: of `batch_responses`; what else is in it goes to the model.
    """
    out = model(**_inputs(batch), labels=batch["labels"], fused_lm_head=True)
    found = (out.log_probs, out.entropy, out.log_sum_sq_probs)
    return ResponseOutputs(
        *(value if value is None else _picked(value, batch) for value in found), batch["response_mask"]
    )


def response_log_probs(model: torch.nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The log-probabilities of `response_outputs` alone, (N, T); a CPU need not compute what else is asked for."""
    out = model(**_inputs(batch), labels=batch["labels"], fused_lm_head=True, log_probs_alone=True)
    return _picked(out.log_probs, batch)


def response_values(critic: torch.nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """V(s_t) of a token classifier, read where the response's token t is predicted, shape (N, T); 0 on padding."""
    return _picked(critic(**_inputs(batch), use_cache=False).logits.squeeze(-1)[:, :-1].float(), batch)


def _inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name not in NOT_INPUTS}


def _picked(outputs: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Of outputs (R, W - 1) those of response tokens, (N, T)."""
    at = batch["at"]
    return outputs.reshape(-1).index_select(0, at.flatten()).view(at.shape) * batch["response_mask"]
