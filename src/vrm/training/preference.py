"""Training of policies on preference pairs: DPO, IPO, KTO, SimPO, WPO, and DPO on selected pairs.

* One trainer, one enum: methods differ in their losses, which are pure functions, chosen here by name, and in their
  rows. A row is two texts. For the paired methods they are the chosen and the rejected response. For KTO, which is
  unpaired, they are one response, desirable or not, and a mismatched one: another response of the same batch below
  this prompt, which estimates the KL term.
* The reference is the policy before its first step. Its log-probabilities are computed once, over the whole data,
  before training, or read where `make_reference` has done so for all methods; there is no second model in memory.
* Pairs arrive tokenised, so nothing is dropped in silence: what is cut or identical after cutting is counted.
* `held_out.csv` says what the training did to each validation pair.
* A killed training continues from its last checkpoint to the same result (CPU, same thread count).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from datasets import Dataset
from numpy.typing import ArrayLike
from torch import Tensor
from transformers import EvalPrediction, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import TrainOutput

from vrm.checkpoints import resumable
from vrm.config import PreferenceMethod, dependencies
from vrm.models.known_texts import KnownTexts, text_key
from vrm.models.reference_log_probs import Reference, write_reference
from vrm.models.responses import batch_responses, response_outputs
from vrm.models.shared_prefix import Kernel
from vrm.models.text import TextEncoder, TokenisedText
from vrm.records import RecordError, both_texts
from vrm.runfiles import DIFFICULTY, TRAINING
from vrm.training.engine import kernel_of
from vrm.training.pairs import TokenisedPair, tokenise_pairs
from vrm.training.policies import MAX_GRAD_NORM, SECTION, PolicyJob, leave, load_policy
from vrm.training.preemption import CheckpointOnStop
from vrm.training.trainer import LogWriter, WatchedTrainer, common_arguments, shard, started_processes, watch_steps

# The losses: pure functions of log-probabilities, one value an example, nothing averaged. `logratio` is log pi - log
# pi_ref, `logp` is log pi, both summed over the tokens of a response, its end token included, in nats; `length` counts
# those tokens. All are of shape (B,).


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


# The rows, and the training.

SIDES = ("first", "second")

REFERENCES = ("first_reference", "second_reference")

NOT_TEXTS = {"second", "desirable", *REFERENCES}
"""What a batch has beside the texts that carry the gradient."""


def paired_rows(pairs: Sequence[TokenisedPair]) -> Dataset:
    """One row a pair: chosen, rejected."""
    return Dataset.from_list([_row(pair.chosen.ids, pair.rejected.ids, pair.chosen.prompt_length) for pair in pairs])


def unpaired_rows(pairs: list[TokenisedPair], batch_size: int, seed: int, known: Reference | None = None) -> Dataset:
    """Two rows a pair in a new order, each with a mismatched response, in batches of both kinds; to be read in order.

    The mismatched responses of a batch are the very ones that it learns from, moved on by one row (Ethayarajh et al.
    2024), or by more where the next row has the same prompt. A long prompt with a long mismatched response is cut to
    the longest text of the batch, so that it takes no more memory; that is not counted, and only the KL term sees it.

    Args:
        pairs: N pairs.
        batch_size: rows a batch of all processes, at least 2.
        seed: seed of the order.
        known: what the reference says of the responses themselves, which then stands in their rows.

    Returns:
        2N rows.
    """
    order = np.random.default_rng(seed).permutation(2 * len(pairs))
    texts = _responses(pairs, known)
    shuffled = [texts[place] for place in order]
    starts = range(0, len(shuffled), batch_size)
    return Dataset.from_list([row for start in starts for row in _mismatched(shuffled[start : start + batch_size])])


def measured_rows(pairs: list[TokenisedPair], known: Reference | None = None) -> Dataset:
    """As `unpaired_rows`, in one batch and with the chosen and the rejected response of a pair side by side.

    A mismatched response is looked for a pair earlier, so that half of them are chosen ones, as in training.
    """
    return Dataset.from_list(list(_mismatched(_responses(pairs, known), first=2)))


@dataclass(frozen=True)
class _Response:
    prompt_id: str
    text: TokenisedText
    desirable: bool
    reference: float | None


def _responses(pairs: list[TokenisedPair], known: Reference | None) -> list[_Response]:
    """Chosen and rejected of the first pair, of the second, ..."""
    log_probs = [[None, None]] * len(pairs) if known is None else _said_of(pairs, known).tolist()
    return [
        _Response(pair.record.prompt_id, text, desirable, log_prob)
        for pair, both in zip(pairs, log_probs, strict=True)
        for text, desirable, log_prob in zip((pair.chosen, pair.rejected), (True, False), both, strict=True)
    ]


def _mismatched(batch: list[_Response], first: int = 1) -> Iterator[dict[str, Any]]:
    """Each response's row, its mismatched response so many rows earlier, or the next one of another prompt before."""
    longest = max(len(response.text.ids) for response in batch)
    for place, response in enumerate(batch):
        earlier = [batch[place - step] for step in range(first, len(batch)) or range(1, len(batch))]
        # a last batch of one prompt alone has no better one
        other = next((o for o in earlier if o.prompt_id != response.prompt_id), earlier[0] if earlier else response)
        start = response.text.prompt_length
        mismatched = response.text.ids[:start] + other.text.ids[other.text.prompt_length :]
        row = _row(response.text.ids, mismatched[:longest], start) | {"desirable": response.desirable}
        yield row if response.reference is None else row | {REFERENCES[0]: response.reference}


def _row(first: list[int], second: list[int], prompt_length: int) -> dict[str, Any]:
    return {"first_ids": first, "second_ids": second, "prompt_length": prompt_length}


@dataclass
class RowCollator:
    """B rows as a batch of 2B responses, first the first texts, then the second ones: see `batch_responses`.

    Args:
        pad_token_id: fills rows up.
        kernel: of packed rows; None pads.
        tokens_per_row: budget of a packed row.
        apart: whether the second texts are a batch of their own, `second`, which a policy can read without gradient.
    """

    pad_token_id: int
    kernel: Kernel | None = None
    tokens_per_row: int | None = None
    apart: bool = False

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch, with references and KTO's labels, (B,)."""
        sides = [[(row[f"{side}_ids"], row["prompt_length"]) for row in rows] for side in SIDES]
        if self.apart:
            batch = self._texts(sides[0]) | {"second": self._texts(sides[1])}
        else:
            batch = self._texts([text for side in sides for text in side])
        for name in ("desirable", *REFERENCES):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        return batch

    def _texts(self, texts: list[tuple[list[int], int]]) -> dict[str, Any]:
        return batch_responses(texts, self.pad_token_id, self.kernel, self.tokens_per_row)


EVIDENCE = ("total", "length", "exponent")


@dataclass(frozen=True)
class Responses:
    """What the policy and its reference say of B responses, end tokens included.

    Args:
        total: log pi, summed over the response, nats, shape (B,).
        length: its tokens, shape (B,).
        exponent: mean over its tokens of log p - log sum_v p_v^2, WPO's weight, shape (B,); 0 for the other methods.
        reference: log pi_ref, summed, shape (B,).
    """

    total: Tensor
    length: Tensor
    exponent: Tensor
    reference: Tensor

    @property
    def logratio(self) -> Tensor:
        """log pi - log pi_ref, shape (B,)."""
        return self.total - self.reference

    def select(self, rows: slice) -> Responses:
        """Some of the rows."""
        return Responses(self.total[rows], self.length[rows], self.exponent[rows], self.reference[rows])


def row_losses(
    method: PreferenceMethod, first: Responses, second: Responses, desirable: Tensor | None, kl: Tensor | None
) -> Tensor:
    """The method's loss of each of B rows, in its own unit, shape (B,); WPO's without its weights.

    Args:
        method: the objective and its coefficients.
        first: chosen responses; KTO's responses.
        second: rejected responses; KTO's mismatched ones.
        desirable: KTO's labels, shape (B,).
        kl: KTO's estimate of the KL, a scalar.
    """
    match method.method:
        case "dpo" | "selective_dpo" | "wpo":
            return dpo(first.logratio, second.logratio, method.beta)
        case "ipo":
            return ipo(first.logratio, second.logratio, first.length, second.length, method.beta)
        case "simpo":
            return simpo(first.total, second.total, first.length, second.length, method.beta, method.gamma_over_beta)
        case "kto":
            weights = method.desirable_weight, method.undesirable_weight
            return kto(first.logratio, desirable, kl, method.beta, *weights)


def rewards(method: PreferenceMethod, responses: Responses) -> Tensor:
    """What B responses are worth to a policy, shape (B,): DPO's implicit reward, or SimPO's length-normalised one.

    IPO's too is a sum over tokens, as TRL logs it and as policies score in Table 2, though its loss compares means.
    """
    return method.beta * (responses.logratio if method.needs_reference else responses.total / responses.length)


def read_responses(side: str, evidence: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> Responses:
    """The first or second texts of a batch of rows: what the policy says of them, and the known reference."""
    return Responses(*(evidence[f"{side}_{name}"] for name in EVIDENCE), known[f"{side}_reference"])


def measured_pairs(
    method: PreferenceMethod, evidence: Mapping[str, ArrayLike], known: Mapping[str, ArrayLike]
) -> pd.DataFrame:
    """Loss, margin and log ratios of whole pairs.

    Args:
        method: the objective.
        evidence: what a policy says of N rows, as `PreferenceTrainer.observe` returns it.
        known: their references, and KTO's labels: rows of a pair side by side, as `unpaired_rows` without a seed.

    Returns:
        One row a pair: loss, margin, chosen_logratio, rejected_logratio; see docs/files.md.
    """
    tensors = {name: torch.as_tensor(value) for name, value in {**evidence, **known}.items()}
    first, second = (read_responses(side, tensors, tensors) for side in SIDES)
    kl = kto_kl(second.logratio) if method.method == "kto" else None
    loss = row_losses(method, first, second, tensors.get("desirable"), kl)
    if method.method == "kto":
        loss = loss.reshape(-1, 2).mean(1)
        first, second = first.select(slice(0, None, 2)), first.select(slice(1, None, 2))
    columns = {
        "loss": loss,
        "margin": rewards(method, first) - rewards(method, second),
        "chosen_logratio": first.logratio,
        "rejected_logratio": second.logratio,
    }
    return pd.DataFrame({name: value.numpy() for name, value in columns.items()})


class PreferenceTrainer(WatchedTrainer):
    """Hugging Face's trainer for tokenised rows of two texts, with the loss of the method."""

    start: pd.DataFrame
    """`measured_pairs` of the held-out rows by the policy that the training starts from."""
    _latest: tuple[int, pd.DataFrame] | None = None
    """Step of the latest measurement, and `measured_pairs` of the set that was measured last: the held-out rows."""

    def __init__(self, *, method: PreferenceMethod, **options: Any) -> None:
        self.method = method
        super().__init__(compute_metrics=self._measure, **options)
        self.model_accepts_loss_kwargs = False  # our loss is a mean over rows; let the trainer scale accumulation
        self._window: dict[str, list[Tensor]] = defaultdict(list)

    @property
    def _unpaired(self) -> bool:
        return self.method.method == "kto"

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The loss of one batch; with `return_outputs` also what the policy says of both texts of each row."""
        evidence = self._evidence(model, inputs)
        first, second = (read_responses(side, evidence, inputs) for side in SIDES)
        kl = None
        if self._unpaired:
            kl = kto_kl(self.accelerator.gather(second.logratio.detach()))
        rows = row_losses(self.method, first, second, inputs.get("desirable"), kl)
        if self.method.method == "wpo":
            weight = wpo_weight(first.exponent, second.exponent)
            rows = weight * rows
            self._log_window(weight=weight)
        self._log_window(kl=kl)
        if not self._unpaired:
            margin = rewards(self.method, first) - rewards(self.method, second)
            self._log_window(accuracy=(margin > 0).float(), margin=margin)
        return (rows.mean(), evidence) if return_outputs else rows.mean()

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: object = None
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Evidence and references of a batch, so that `_measure` sees whole sets."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            if REFERENCES[1] in inputs:
                loss, evidence = self.compute_loss(model, inputs, return_outputs=True)
            else:  # the pass over the data that computes the reference
                evidence = self._evidence(model, inputs)
                loss = torch.zeros_like(evidence["first_total"][0])
        known = {name: inputs[name] for name in ("desirable", *REFERENCES) if name in inputs}
        return loss, evidence, known or {"none": evidence["first_length"]}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the window's means; the only place where training waits for the device."""
        if "loss" in logs:
            means = {name: torch.cat(values).mean() for name, values in self._window.items()}
            logs |= {name: self.accelerator.gather(mean).mean().item() for name, mean in means.items()}
            self._window.clear()
        super().log(logs, start_time)

    def observe(self, rows: Dataset) -> dict[str, np.ndarray]:
        """What the present policy says of both texts of N rows: `first_total`, ..., each of shape (N,)."""
        measure_rows, self.compute_metrics = self.compute_metrics, None
        try:
            return self.predict(rows).predictions
        finally:
            self.compute_metrics = measure_rows

    def end(self) -> pd.DataFrame:
        """`measured_pairs` of the held-out rows by the present policy, which the last step's measurement has made."""
        if self._latest and self._latest[0] == self.state.global_step:
            return self._latest[1]
        return measure_rows(self)

    def train(self, *arguments: Any, **options: Any) -> TrainOutput:
        """See `Trainer.train`."""
        # `observe` has marked the model as prepared, for evaluation; left so, each of several processes would train a
        # model of its own
        self.accelerator.free_memory()
        self.model._is_accelerate_prepared = False
        return super().train(*arguments, **options)

    def _evidence(self, model: torch.nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        texts = {name: value for name, value in inputs.items() if name not in NOT_TEXTS}
        if "second" in inputs:  # the mismatched texts carry no gradient
            asked = REFERENCES[1] in inputs or REFERENCES[0] not in inputs  # or known already
            first = _log_probs(model, texts) if asked else _said(inputs[REFERENCES[0]], texts["response_mask"])
            with torch.no_grad():
                second = _log_probs(model, inputs["second"])
            halves = {name: (first[name], second[name]) for name in EVIDENCE}
        else:
            halves = {name: value.chunk(2) for name, value in _log_probs(model, texts).items()}
        return {f"{side}_{name}": halves[name][half] for half, side in enumerate(SIDES) for name in EVIDENCE}

    def _log_window(self, **values: Tensor | None) -> None:
        if self.model.training:
            for name, value in values.items():
                if value is not None:
                    self._window[name].append(value.detach().float().reshape(-1))

    def _measure(self, prediction: EvalPrediction) -> dict[str, float]:
        pairs = measured_pairs(self.method, prediction.predictions, prediction.label_ids)
        self._latest = self.state.global_step, pairs
        return {
            "accuracy": float((pairs.margin > 0).mean()),
            **{name: float(pairs[name].mean()) for name in ("loss", "margin", "chosen_logratio", "rejected_logratio")},
        }


def train_preference(
    job: PolicyJob, method: PreferenceMethod, difficulty: Path | None = None, reference: Path | None = None
) -> None:
    """Train one policy; write `model/`, `training.csv`, `held_out.csv` and `counts.json` under `job.out`.

    Args:
        job: what to train from, on what, and where to.
        method: the objective; its learning rate, epochs and batch size, if any, take precedence over the job's.
        difficulty: `difficulty.csv`, whose kept pairs Selective DPO trains on, the easiest first.
        reference: what `make_reference` wrote; None asks the policy here.
    """
    job.require_places()
    set_seed(job.seed)
    tokenizer = job.tokenizer()
    known = job.reference(reference, tokenizer)
    pairs, counts = {}, {}
    for split in SPLITS:
        encoder = known.encoder() if known else job.encoder(tokenizer)
        pairs[split], counts[split] = read_tokenised(job, split, encoder)
    if difficulty is not None:
        pairs["train"] = easiest_first(pairs["train"], difficulty)
        counts["train"]["pairs_selected"] = len(pairs["train"])
    held_out = pairs["validation"][: job.training.evaluation_pairs]
    trainer = make_trainer(job, method, tokenizer, pairs["train"], held_out, difficulty is not None, known)
    trainer.look_out(job.out, tokenizer)
    trainer.add_callback(LogWriter(job.out / TRAINING.name))
    trainer.add_callback(CheckpointOnStop(trainer))
    files = [difficulty] if difficulty else []
    made_from = job.made_from({"method": dependencies.method(method)}, *files)
    trainer.train(resume_from_checkpoint=resumable(job.checkpoints, made_from))
    changes = _changes(held_out, trainer.start, trainer.end())
    leave(job, trainer, tokenizer, changes, counts)


SPLITS = ("train", "validation")


def read_tokenised(job: PolicyJob, split: str, encoder: TextEncoder) -> tuple[list[TokenisedPair], dict[str, int]]:
    """See `tokenise_pairs`."""
    return tokenise_pairs(job.read(split), encoder, job.pairs / f"{split}.jsonl", "policy.training.max_length")


def make_reference(job: PolicyJob, out: Path) -> None:
    """Write what the job's policy says of the pairs that are trained and measured on, once for all methods.

    It is asked as a training asks it, in the same batches and precision.

    Args:
        job: what trainings start from, and on what; its own directories are not used.
        out: the Parquet file, `vrm.models.reference_log_probs.REFERENCE`.
    """
    tokenizer = job.tokenizer()
    encoder = job.encoder(tokenizer)
    texts = KnownTexts.of(encoder)
    train, held_out = (read_tokenised(job, split, texts)[0] for split in SPLITS)
    asked = [train, held_out[: job.training.evaluation_pairs]]
    with TemporaryDirectory() as nowhere:
        training = job.training.model_copy(update={"report_to": []})  # nothing is trained that could be followed
        job = replace(job, training=training, checkpoints=Path(nowhere), out=Path(nowhere))
        trainer = _trainer(job, PreferenceMethod(label="", method="dpo"), tokenizer, paired_rows(train))
        said = [_said_by(trainer, pairs) for pairs in asked]
    if trainer.accelerator.is_main_process:
        write_reference(texts, {key: value for part in said for key, value in part}, job.asked_of(encoder), out)
        print(f"{out}: {sum(map(len, asked))} pairs, {texts.truncation.as_dict()}")
    trainer.accelerator.wait_for_everyone()


def make_trainer(
    job: PolicyJob,
    method: PreferenceMethod,
    tokenizer: Any,
    train: list[TokenisedPair],
    held_out: list[TokenisedPair],
    ordered: bool = False,
    known: Reference | None = None,
) -> PreferenceTrainer:
    """A trainer whose rows know their reference; it starts from the job's policy.

    Args:
        job: the policy, the limits and the directories.
        method: the objective.
        tokenizer: the policy's.
        train: what to learn from.
        held_out: what to measure on.
        ordered: whether `train` is to be read in its order.
        known: what the policy says of all these pairs; None: it is asked.
    """
    unpaired = method.method == "kto"
    # processes take turns at the batches: together they have the rows that one process would have, in its order
    together = method.trained_with(job.training).batch_size * started_processes()
    rows = unpaired_rows(train, together, job.seed, known) if unpaired else paired_rows(train)
    seen = train[: len(held_out)]
    measured = [measured_rows(part, known) if unpaired else paired_rows(part) for part in (seen, held_out)]
    trainer = _trainer(job, method, tokenizer, rows, ordered, dict(zip(SPLITS, measured, strict=True)))
    if unpaired:  # its mismatched texts are nobody else's
        found = [trainer.observe(part) for part in (rows, *measured)]
    else:
        found = [evidence_of(trainer, pairs, known) for pairs in (train, held_out)]
        found.insert(1, {name: values[: len(seen)] for name, values in found[0].items()})
    rows, *measured = map(with_reference, (rows, *measured), found)
    trainer.train_dataset, trainer.eval_dataset = rows, dict(zip(SPLITS, measured, strict=True))
    trainer.start = measured_pairs(method, found[-1], _known(measured[-1]))
    return trainer


def _trainer(
    job: PolicyJob,
    method: PreferenceMethod,
    tokenizer: Any,
    rows: Dataset,
    ordered: bool = False,
    measured: dict[str, Dataset] | None = None,
) -> PreferenceTrainer:
    """A trainer whose rows do not know their reference yet."""
    training, unpaired = method.trained_with(job.training), method.method == "kto"
    sequential = {"train_sampling_strategy": "sequential"} if unpaired or ordered else {}
    model = load_policy(job, tokenizer, *(["log_sum_sq_probs"] if method.method == "wpo" else []))
    trainer = PreferenceTrainer(
        method=method,
        model=model,
        args=TrainingArguments(
            **common_arguments(training, len(rows), job.seed, job.checkpoints, job.out),
            **sequential,
            max_grad_norm=MAX_GRAD_NORM,
            activation_checkpointing=training.gradient_checkpointing,
            label_names=["desirable", *REFERENCES],
        ),
        processing_class=tokenizer,
        data_collator=RowCollator(
            tokenizer.pad_token_id, kernel_of(model, training, SECTION), training.tokens_per_row, apart=unpaired
        ),
        train_dataset=rows,
        eval_dataset=rows if measured is None else measured,
    )
    watch_steps(trainer)
    shard(trainer.accelerator, trainer.model)
    return trainer


def evidence_of(
    trainer: PreferenceTrainer, pairs: Sequence[TokenisedPair], known: Reference | None
) -> dict[str, np.ndarray]:
    """What a policy that is not trained yet says of the paired rows of N pairs: see `PreferenceTrainer.observe`.

    WPO's exponents, which are of use in training alone, are 0 where it is not asked.
    """
    if known is None:
        return trainer.observe(paired_rows(pairs))
    texts = [[pair.chosen, pair.rejected] for pair in pairs]
    lengths = np.array([[len(text.ids) - text.prompt_length for text in both] for both in texts], dtype=np.float32)
    found = {"total": _said_of(pairs, known), "length": lengths, "exponent": np.zeros_like(lengths)}
    return {f"{side}_{name}": found[name][:, half] for half, side in enumerate(SIDES) for name in EVIDENCE}


def _said_by(trainer: PreferenceTrainer, pairs: Sequence[TokenisedPair]) -> list[tuple[bytes, float]]:
    """What a policy that is not trained yet says of both texts of each pair, by their keys."""
    found = trainer.observe(paired_rows(pairs))
    totals = np.stack([found[f"{side}_total"] for side in SIDES], axis=1).ravel().tolist()
    return list(zip([text_key(*text) for text in both_texts(pair.record for pair in pairs)], totals, strict=True))


def _said_of(pairs: Sequence[TokenisedPair], known: Reference) -> np.ndarray:
    """What the reference says of the chosen and the rejected responses of N pairs, shape (N, 2)."""
    return known.said(both_texts(pair.record for pair in pairs)).reshape(-1, 2)


def with_reference(rows: Dataset, evidence: Mapping[str, np.ndarray]) -> Dataset:
    """The rows with the log-probabilities of both texts by a policy that is not trained yet, their reference."""
    for side, name in zip(SIDES, REFERENCES, strict=True):
        if name not in rows.column_names:
            rows = rows.add_column(name, np.asarray(evidence[f"{side}_total"], dtype=np.float32))
    return rows


def measure_rows(trainer: PreferenceTrainer, rows: Dataset | None = None) -> pd.DataFrame:
    """`measured_pairs` of the present policy on some rows that know their reference; None: the held-out ones."""
    rows = trainer.eval_dataset["validation"] if rows is None else rows
    return measured_pairs(trainer.method, trainer.observe(rows), _known(rows))


def _known(rows: Dataset) -> dict[str, np.ndarray]:
    names = [name for name in ("desirable", *REFERENCES) if name in rows.column_names]
    return {name: np.asarray(rows[name]) for name in names}


class LossesAlong(TrainerCallback):
    """Scores rows along a training and keeps what it found beside the checkpoints, for a training that is resumed.

    Args:
        trainer: trains the policy that scores.
        rows: what is scored, with its reference.
        evaluations: how often, evenly spaced, the last time after the last step; every step at most.
        folder: the checkpoints'.
    """

    def __init__(self, trainer: PreferenceTrainer, rows: Dataset, evaluations: int, folder: Path) -> None:
        self.trainer, self.rows, self.folder = trainer, rows, folder
        last = trainer.args.max_steps
        self.steps = sorted({max(1, round(last * k / evaluations)) for k in range(1, evaluations + 1)})

    def on_step_end(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """Score, where it is time to."""
        if state.global_step in self.steps:
            losses = measure_rows(self.trainer, self.rows).loss.to_numpy()
            if state.is_world_process_zero:
                self.folder.mkdir(parents=True, exist_ok=True)
                np.save(self._file(state.global_step), losses)

    def mean(self) -> np.ndarray:
        """Mean loss of each row over the evaluations, nats, shape (N,); to be asked for by the first process."""
        return np.mean([np.load(self._file(step)) for step in self.steps], axis=0)

    def _file(self, step: int) -> Path:
        return self.folder / f"losses-{step}.npy"


def easiest_first(pairs: list[TokenisedPair], difficulty: Path) -> list[TokenisedPair]:
    """The pairs that `difficulty.csv` keeps, in its order.

    Raises:
        RecordError: it is about other pairs.
    """
    table = DIFFICULTY.read(difficulty)
    by_id = {pair.record.pair_id: pair for pair in pairs}
    unknown = by_id.keys() ^ set(table.pair_id)
    if unknown:
        raise RecordError(
            f"{difficulty}: {len(unknown)} pairs are only there or only in the training split, e.g. {min(unknown)}; "
            "make it again"
        )
    return [by_id[pair_id] for pair_id in table.pair_id[table.kept == 1]]


def _log_probs(model: torch.nn.Module, texts: Mapping[str, Any]) -> dict[str, Tensor]:
    """Total, length and exponent of a batch of N responses, each of shape (N,)."""
    out = response_outputs(model, texts)
    length = out.mask.sum(1)
    exponent = torch.zeros_like(length)
    if out.log_sum_sq_probs is not None:
        exponent = (out.log_probs - out.log_sum_sq_probs).detach().sum(1) / length
    return {"total": out.log_probs.sum(1), "length": length, "exponent": exponent}


def _said(total: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The same of responses whose log-probability is known; WPO's exponent, of use in training alone, is 0."""
    return {"total": total, "length": mask.sum(1), "exponent": torch.zeros_like(total)}


def _changes(
    pairs: list[TokenisedPair], start: pd.DataFrame, end: pd.DataFrame
) -> list[tuple[str, str, str, float, float]]:
    return [
        (pair.record.pair_id, pair.record.prompt_id, metric, start[metric].iloc[i], end[metric].iloc[i])
        for metric in start.columns
        for i, pair in enumerate(pairs)
    ]
