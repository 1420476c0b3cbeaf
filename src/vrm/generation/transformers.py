"""Generation with `transformers`: the policy itself answers, in batches of similar length.

* What is sampled is what log-probabilities are of: the policy's own generation_config.json, which may hold top-k or a
  repetition penalty (Qwen2.5's does), is set aside. `generate` would fill whatever we leave open from it.
* Five milliseconds a token for 128 texts and a model of 0.3M parameters on one CPU thread, two of them in
  `torch.multinomial`; static caches, eager attention or switching compilation off make no difference there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from vrm.config import Generation
from vrm.generation.base import Sampling, end_ids, seeded
from vrm.models.scoring import pad_batch
from vrm.watch import watched


class TransformersEngine:
    """`model.generate` behind the contract of `Engine`.

    Args:
        model: the policy; adapters may be on it.
        tokenizer: its tokenizer, with a pad token.
        settings: how to sample.
        progress: show a progress bar.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: Generation,
        *,
        progress: bool = False,
    ) -> None:
        # adapters sit inside the layers; the wrapper around them would only hand its generation_config down
        self.model: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.tokenizer, self.batch_size, self.progress = tokenizer, settings.batch_size, progress
        self.ends = end_ids(self.model.generation_config, tokenizer)
        self.sampling, self.top_p = Sampling(settings.temperature, settings.max_new_tokens), settings.top_p

    def sync(self) -> None:
        """Nothing to do: the policy itself answers."""

    def generate(
        self, prompts: Sequence[Sequence[int]], seed: int, sampling: Sampling | None = None
    ) -> list[list[int]]:
        """See `Engine.generate`; sampled answers depend on `batch_size` and on the other prompts, greedy ones don't."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        starts = range(0, len(order), self.batch_size)
        answers: dict[int, list[int]] = {}
        config = self._generation_config(sampling or self.sampling)
        with self._answering(config), seeded(seed, self.model.device):
            for start in watched(starts, "generating", "batches", quiet=not self.progress):
                rows = order[start : start + self.batch_size]
                answers |= zip(rows, self._batch([prompts[i] for i in rows], config), strict=True)
        return [answers[i] for i in range(len(prompts))]

    def _generation_config(self, sampling: Sampling) -> GenerationConfig:
        how: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            # top_k would be 50
            how = {"do_sample": True, "temperature": sampling.temperature, "top_p": self.top_p, "top_k": 0}
        return GenerationConfig(
            **how,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=sorted(self.ends),
            pad_token_id=self.tokenizer.pad_token_id,
        )

    def _batch(self, prompts: list[Sequence[int]], config: GenerationConfig) -> Iterator[list[int]]:
        ids, mask = (part.to(self.model.device) for part in pad_batch(prompts, self.tokenizer, side="left"))
        out = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        for row in out[:, ids.shape[1] :].tolist():
            end = next((i + 1 for i, token in enumerate(row) if token in self.ends), len(row))
            yield row[:end]

    @contextmanager
    def _answering(self, config: GenerationConfig) -> Iterator[None]:
        """Evaluation mode, in which activations are not checkpointed either, and our generation config alone."""
        model, training, own = self.model, self.model.training, self.model.generation_config
        model.eval()
        model.generation_config = config
        try:
            yield
        finally:
            model.train(training)
            model.generation_config = own
