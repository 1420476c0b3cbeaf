"""PPO against a reward model that is asked in text: its mathematics, pure functions of tensors, and then the training.

* Policy and reward model may have different tokenizers and chat templates: the reward is a function of text.
* One update: answer a batch of prompts, score the answers, take the KL from the reference into the reward, estimate
  advantages, and make several optimiser steps on the batch.
* Every random choice is seeded by the update's number, and actor, critic, both optimisers and the reward's running
  moments are checkpointed: a killed run continues to the same result (CPU, same thread count).
* Fixed held-out prompts are answered along the way (`samples.jsonl`): the over-optimisation curve.
* Through `accelerate`: one process or several; losses are means over the tokens of all of them.

Why this is not built on TRL's trainers: docs/decisions.md.
Source: Schulman et al. 2017; Ouyang et al. 2022; details as in Huang et al. 2024, "The N+ Implementation Details".
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from torch import Tensor
from transformers import set_seed

from vrm.checkpoints import keep_newest, model_files, resumable
from vrm.config import ConfigError, Generation, OutsideModel, PpoTraining, dependencies
from vrm.generation.engines import make_engine
from vrm.models.base import RewardModel
from vrm.ours import place, remove_ours
from vrm.records import write_json
from vrm.runfiles import ANSWER_MEASURES, HELD_OUT, PPO_SAMPLES, TRAINING
from vrm.training.policies import MAX_GRAD_NORM, PolicyJob, save_policy, write_held_out
from vrm.training.preemption import PreemptedError, StopRequest
from vrm.training.rollout import (
    ActorCritic,
    Answerer,
    Answers,
    Experience,
    Question,
    in_parts,
    read_questions,
    token_log_probs,
    token_values,
)
from vrm.training.symptoms import TrainingError, Watchdog, ppo_measures, ppo_symptoms, say_symptoms
from vrm.training.trainer import KEPT, STOPPED, TRACKED, write_rows
from vrm.watch import Watch

# The mathematics. Rows are responses, columns their tokens, padded on the right: everything is of shape (B, T) with a
# mask that is 1 on real tokens.

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


# The training.


def train_ppo(
    job: PolicyJob,
    ppo: PpoTraining,
    generation: Generation,
    reward: RewardModel,
    source: Path | OutsideModel | None = None,
) -> None:
    """Train one policy; write `model/`, `training.csv`, `samples.jsonl`, `held_out.csv`, `counts.json` in `job.out`.

    Args:
        job: what to train from, on which prompts, and where to.
        ppo: the algorithm's settings.
        generation: how the policy answers.
        reward: what it is paid by.
        source: where that reward model comes from, so that another one starts the run anew.

    Raises:
        ConfigError: a batch can't be dealt out evenly to processes and optimiser steps.
        TrainingError: the run has blown up; the log and the samples so far are kept beside the checkpoints.
    """
    job.require_places()
    settings = {
        "ppo": dependencies.ppo(ppo),
        "generation": dependencies.generation(generation),
        "reward_part": getattr(reward, "reward", "full"),
    }
    if isinstance(source, OutsideModel):
        settings["outside"] = dependencies.outside(source)
        source = Path(source.path)
    made_from = job.made_from(settings, *(model_files(source) if source else []), unused=dependencies.NOT_PPO)
    run = PpoRun(job, ppo, generation, reward)
    run.train(resumable(job.checkpoints, made_from))
    run.finish()


class PpoRun:
    """A run in progress: models, running moments, history."""

    def __init__(self, job: PolicyJob, ppo: PpoTraining, generation: Generation, reward: RewardModel) -> None:
        set_seed(job.seed)
        self.job, self.ppo = job, ppo
        precision = "bf16" if job.training.bf16 else "no"
        self.accelerator = Accelerator(
            mixed_precision=precision,
            cpu=not torch.cuda.is_available(),
            log_with=list(job.training.report_to) or None,
            project_dir=str(job.out),
            # buffers never change here, and processes pass different numbers of held-out batches: a broadcast in each
            # pass would meet another process's next collective
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        if job.training.report_to:
            self.accelerator.init_trackers(TRACKED)
        processes = self.accelerator.num_processes
        self.local_batch = ppo.local_batch(processes)
        self.tokenizer = job.tokenizer()
        encoder, held_out_encoder = job.encoder(self.tokenizer), job.encoder(self.tokenizer)
        self.questions = read_questions(job.pairs / "train.jsonl", encoder)
        self.held_out = read_questions(job.pairs / "validation.jsonl", held_out_encoder, ppo.evaluation_prompts)
        if len(self.held_out) < processes:
            raise ConfigError(
                f"{len(self.held_out)} held-out prompts for {processes} processes: raise evaluation_prompts"
            )
        self.counts = {
            "prompts": len(self.questions),
            "prompts_cut": encoder.truncation.prompts_cut,
            "held_out_prompts": len(self.held_out),
            "held_out_prompts_cut": held_out_encoder.truncation.prompts_cut,
            "answers": 0,
            "answers_cut_by_reward_model": 0,
        }
        self.models = ActorCritic(job, ppo, self.tokenizer, generation.temperature, self.accelerator)
        limit = job.training.max_prompt_length
        engine = make_engine(generation, self.models.policy, self.tokenizer, max_prompt_length=limit)
        self.answerer = Answerer(self.models, engine, reward, self.tokenizer, ppo.minibatch_size)
        self.moments = RunningMoments()
        self.watchdog = Watchdog(ppo.limits, ppo.critic_warmup)
        self.history: list[tuple[int, float, str, str, float]] = []
        self.samples: list[dict[str, Any]] = []
        self.batch: list[dict[str, Any]] = []
        """Prompts and answers of the update that is under way, of this process."""

    def train(self, checkpoint: str | None) -> None:
        """Run from the checkpoint, or from the start, to the end."""
        total = self.ppo.updates
        measured, saved = -(-total // self.ppo.evaluations), -(-total // (self.ppo.checkpoints + 1))
        start = self._restore(Path(checkpoint)) if checkpoint else 0
        quiet = not self.accelerator.is_main_process
        stop = StopRequest(self.accelerator).listen()
        watch = Watch("PPO", "updates", total, start, quiet=quiet)
        for update in range(start, total):
            if update % measured == 0:
                self.evaluate(update)
            measures = self.update(update)
            self._log(update + 1, "batch", measures)
            watch.add(**{name: measures[name] for name in ANSWER_MEASURES})
            try:
                self.watchdog.check(update, measures)
            except TrainingError as error:
                # Snakemake deletes the outputs of a failed job; what is beside the checkpoints stays
                self._write(self.job.checkpoints)
                self._write_batch(update, measures)
                raise TrainingError(
                    f"{error}; the log, the samples so far and that update's answers are in {self.job.checkpoints}"
                ) from None
            done, stops = update + 1, update + 1 < total and stop.came()
            if done < total and (stops or done % saved == 0):
                self._save(done)
            if stops:
                stop.leave()
                raise PreemptedError(done, self.job.checkpoints)
        stop.leave()
        watch.close()
        self.evaluate(total)

    def update(self, number: int) -> dict[str, float]:
        """Answer a batch of prompts and learn from it; returns the measures of this update over all processes."""
        questions = self._questions(number)
        answers = self.answerer.answer(questions, self._seed("rollout", number, self.accelerator.process_index))
        self.batch = [
            {"prompt": question.prompt, "response": response}
            for question, response in zip(questions, answers.responses, strict=True)
        ]
        experience, scores = self._experience(answers)
        self.models.set_learning_rates(number)
        steps = []
        for epoch in range(self.ppo.epochs):
            generator = torch.Generator().manual_seed(self._seed("minibatches", number, epoch))
            order = torch.randperm(self.local_batch, generator=generator)
            for rows in order.split(self.ppo.minibatch_size * self.ppo.gradient_accumulation):
                steps.append(self._step(experience, rows, actor_learns=number >= self.ppo.critic_warmup))
        gathered = {name: self.accelerator.gather(value) for name, value in answers.measures().items()}
        self.counts["answers"] += self.ppo.prompts_per_update
        self.counts["answers_cut_by_reward_model"] += int(self._sum(answers.cut.sum()))
        variance = explained_variance(experience.values, experience.returns, answers.texts.mask)
        return {
            **{name: value.mean().item() for name, value in gathered.items()},
            "reward_std": gathered["reward"].std(unbiased=False).item(),
            "score": self.accelerator.gather(scores).mean().item(),
            "missing_end": 1 - self.accelerator.gather(answers.ended.float()).mean().item(),
            "explained_variance": self.accelerator.gather(variance.reshape(1)).mean().item(),
            **{name: torch.stack([step[name] for step in steps]).mean().item() for name in steps[0]},
        }

    def evaluate(self, update: int) -> None:
        """Answer the held-out prompts, with the same random stream every time, and keep what comes out."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        mine = self.held_out[rank::processes]
        answers = self.answerer.answer(mine, self._seed("held out", rank))
        measures = {name: value.tolist() for name, value in answers.measures().items()}
        rows = [
            {
                "step": update,
                "prompt_id": question.prompt_id,
                "prompt": question.prompt,
                "response": answers.responses[i],
                **{name: round(values[i], 6) for name, values in measures.items()},
                "ended": bool(answers.ended[i]),
            }
            for i, question in enumerate(mine)
        ]
        rows = sorted(gather_object(rows), key=lambda row: row["prompt_id"])
        self.samples += rows
        means = {name: float(np.mean([row[name] for row in rows])) for name in ANSWER_MEASURES}
        self._log(update, "validation", means | {"missing_end": float(np.mean([not row["ended"] for row in rows]))})
        self._write()

    def finish(self) -> None:
        """Write what the run leaves behind; the checkpoints are no longer needed."""
        if self.accelerator.is_main_process:
            self._write()
            first, last = ([row for row in self.samples if row["step"] == step] for step in (0, self.ppo.updates))
            changes = [
                (a["prompt_id"], a["prompt_id"], name, a[name], b[name])
                for name in ANSWER_MEASURES
                for a, b in zip(first, last, strict=True)
            ]
            write_held_out(changes, self.job.out / HELD_OUT.name)
            write_json(self.job.out / "counts.json", self.counts)
            say_symptoms(ppo_measures(self.job.out), ppo_symptoms(self.ppo.limits))
            place(
                self.job.out / "model",
                lambda directory: save_policy(self.models.policy, self.tokenizer, directory),
            )
            remove_ours(self.job.checkpoints)
        for tracker in self.accelerator.trackers:  # not end_training, which takes the other processes down too
            tracker.finish()
        self.accelerator.wait_for_everyone()

    def _experience(self, answers: Answers) -> tuple[Experience, Tensor]:
        """Advantages and returns of a batch, and the score that each answer got in the end, shape (B,)."""
        mask, critic = answers.texts.mask, self.models.critic
        with torch.no_grad():
            (values,) = in_parts(lambda part: (token_values(critic, part),), answers.texts)
        answers.texts.let_go()
        scores = answers.rewards
        if self.ppo.normalise_rewards:
            self.moments.update(self.accelerator.gather(scores))
            scores = self.moments.normalise(scores)
        scores = scores.clamp(-self.ppo.reward_clip, self.ppo.reward_clip)
        scores = scores - self.ppo.missing_end_penalty * (~answers.ended).float()
        rewards = token_rewards(scores, answers.logratio, mask, self.ppo.kl_coefficient)
        advantages, returns = gae(rewards, values, mask, self.ppo.gamma, self.ppo.gae_lambda)
        tokens = self._sum(mask.sum())
        mean = self._sum((advantages * mask).sum()) / tokens
        variance = self._sum((((advantages - mean) * mask) ** 2).sum()) / tokens
        advantages = whiten(advantages, mask, mean, variance)
        return Experience(answers.texts, answers.log_probs, values, advantages, returns), scores

    def _step(self, experience: Experience, rows: Tensor, actor_learns: bool) -> dict[str, Tensor]:
        """One optimiser step of actor and critic on some rows; losses are means over all processes' tokens.

        The host does not wait for the device here.
        """
        ppo = self.ppo
        tokens = self._sum(experience.texts.mask[rows].sum())
        scale = self.accelerator.num_processes / tokens  # gradients are averaged over processes
        totals: dict[str, Tensor] = {}
        for part in rows.split(ppo.minibatch_size):
            old = experience.rows(part)
            mask = old.texts.mask
            with torch.set_grad_enabled(actor_learns):
                log_probs = token_log_probs(self.models.actor, old.texts)
            values = token_values(self.models.critic, old.texts)
            surrogate, clipped = policy_loss(log_probs, old.log_probs, old.advantages, mask, ppo.clip)
            error = value_loss(values, old.values, old.returns, mask, ppo.value_clip)
            # while the critic warms up, the surrogate is a constant
            self.accelerator.backward((ppo.value_coefficient * error.sum() + surrogate.sum()) * scale)
            moved = approximate_kl(log_probs.detach() - old.log_probs) * mask
            terms = {"policy_loss": surrogate, "value_loss": error, "clipped": clipped, "approximate_kl": moved}
            for name, value in terms.items():
                totals[name] = totals.get(name, 0.0) + value.detach().sum()
        norms = self.models.step(MAX_GRAD_NORM, actor_learns)
        return {name: self._sum(total) / tokens for name, total in totals.items()} | norms

    def _questions(self, update: int) -> list[Question]:
        """This process's prompts of an update: all prompts are dealt out in a new order at each pass."""
        count, total = self.ppo.prompts_per_update, len(self.questions)
        places = range(update * count, (update + 1) * count)
        orders = {n: np.random.default_rng([self.job.seed, n]).permutation(total) for n in {p // total for p in places}}
        mine = places[self.accelerator.process_index :: self.accelerator.num_processes]
        return [self.questions[orders[place // total][place % total]] for place in mine]

    def _seed(self, *parts: object) -> int:
        digest = hashlib.sha256(repr((self.job.seed, *parts)).encode()).digest()
        return int.from_bytes(digest[:4], "little")

    def _sum(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value, "sum")

    def _log(self, step: int, split: str, measures: dict[str, float]) -> None:
        epoch = round(step * self.ppo.prompts_per_update / len(self.questions), 6)
        self.history += [(step, epoch, split, name, value) for name, value in measures.items()]
        self.accelerator.log({f"{split}/{name}": value for name, value in measures.items()}, step=step)

    def _write(self, directory: Path | None = None) -> None:
        directory = directory or self.job.out
        if self.accelerator.is_main_process:
            write_rows(self.history, directory / TRAINING.name)
            PPO_SAMPLES.write(directory / PPO_SAMPLES.name, self.samples)

    def _write_batch(self, update: int, measures: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            numbers = {name: str(value) for name, value in measures.items()}  # JSON has no NaN
            record = {"update": update, "measures": numbers, "answers": self.batch}
            write_json(self.job.checkpoints / f"{STOPPED}.json", record)

    def _save(self, update: int) -> None:
        """A checkpoint; the state is its last file, so a readable one means that all others are there."""
        directory = self.job.checkpoints / f"checkpoint-{update}"
        self.accelerator.save_state(str(directory))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            state = {name: getattr(self, name) for name in ("history", "samples", "counts")}
            state |= {"moments": self.moments.state_dict(), "streaks": self.watchdog.streaks, "update": update}
            write_json(directory / "trainer_state.json", state)
            keep_newest(self.job.checkpoints, KEPT)

    def _restore(self, checkpoint: Path) -> int:
        """Go on where the checkpoint was made; returns the number of the next update."""
        # of adapters a checkpoint has no more than what is trained
        self.accelerator.load_state(str(checkpoint), strict=not self.job.training.lora)
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        self.history = [tuple(row) for row in state["history"]]
        self.samples, self.counts = state["samples"], state["counts"]
        self.moments.load_state_dict(state["moments"])
        self.watchdog.streaks.update(state["streaks"])
        return state["update"]
