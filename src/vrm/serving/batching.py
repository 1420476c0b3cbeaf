"""Texts of several requests in one call of the model.

* While the model is at work, requests wait; when it is free, it takes all that wait, up to a number of texts. Nobody
  waits for company: a lone request is scored at once, and a crowd makes large batches by itself.
* What waits is bounded. Beyond that a request is refused at once (`Full`), so that the client comes back later instead
  of everybody's waiting time growing without end.
* A request that the model refuses spoils nobody else's: its batch is scored again one request at a time.
* Company changes a reward by rounding alone, which is a promise of `vrm.models.base.RewardModel`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields

import numpy as np

from vrm.models.base import RewardModel, RewardOutput
from vrm.records import Prompt


class Full(Exception):
    """As many texts wait as may."""


class NotFinite(Exception):
    """The model's reward of a text is no number."""


@dataclass
class _Job:
    prompts: Sequence[Prompt | str]
    responses: Sequence[str]
    done: asyncio.Future[RewardOutput] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batcher:
    """Scores what requests bring, in one thread.

    Args:
        model: is called from that thread alone.
        batch_texts: texts of a call; a request with more of them has a call to itself.
        queue_texts: texts that may wait or be at work.
        observe: is told the texts and the seconds of every call.
    """

    def __init__(
        self,
        model: RewardModel,
        batch_texts: int,
        queue_texts: int,
        observe: Callable[[int, float], None] = lambda texts, seconds: None,
    ) -> None:
        self.model, self.batch_texts, self.queue_texts, self.observe = model, batch_texts, queue_texts, observe
        self.texts = 0
        """Texts that wait or are at work."""
        self._jobs: deque[_Job] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "scoring")
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Batcher:
        self._task = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown()

    @property
    def works(self) -> bool:
        """Whether somebody takes what waits."""
        return self._task is not None and not self._task.done()

    async def score(self, prompts: Sequence[Prompt | str], responses: Sequence[str]) -> RewardOutput:
        """Rewards of a request's N texts.

        Raises:
            Full: there is no room for them now.
            NotFinite: a reward is no number.
            Exception: what the model raises for these texts.
        """
        if self.texts + len(responses) > self.queue_texts:
            raise Full
        job = _Job(prompts, responses)
        self.texts += len(responses)
        try:
            self._jobs.append(job)
            self._arrived.set()
            return await job.done
        finally:  # whoever gave up waiting makes room, too
            self.texts -= len(responses)

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            jobs = self._take()
            if not jobs:
                self._arrived.clear()
                continue
            found = await asyncio.get_running_loop().run_in_executor(self._thread, self._score, jobs)
            for job, result in zip(jobs, found, strict=True):
                if job.done.done():  # its client has given up
                    continue
                if isinstance(result, Exception):
                    job.done.set_exception(result)
                else:
                    job.done.set_result(result)

    def _take(self) -> list[_Job]:
        """What is scored next: as many requests, in their order, as fit into a call."""
        taken: list[_Job] = []
        room = self.batch_texts
        while self._jobs and (not taken or len(self._jobs[0].responses) <= room):
            job = self._jobs.popleft()
            if not job.done.done():
                taken.append(job)
                room -= len(job.responses)
        return taken

    def _score(self, jobs: list[_Job]) -> list[RewardOutput | Exception]:
        """Each request's rewards, or what the model says against it; runs in the thread."""
        prompts = [prompt for job in jobs for prompt in job.prompts]
        responses = [response for job in jobs for response in job.responses]
        started = time.perf_counter()
        try:
            out = self.model.score(prompts, responses)
        except Exception as error:
            return [error] if len(jobs) == 1 else [self._score([job])[0] for job in jobs]
        self.observe(len(responses), time.perf_counter() - started)
        ends = np.cumsum([len(job.responses) for job in jobs])
        return [_finite(_rows(out, end - len(job.responses), end)) for job, end in zip(jobs, ends, strict=True)]


def _rows(out: RewardOutput, start: int, end: int) -> RewardOutput:
    columns = {part.name: getattr(out, part.name) for part in fields(RewardOutput)}
    return RewardOutput(**{name: None if values is None else values[start:end] for name, values in columns.items()})


def _finite(out: RewardOutput) -> RewardOutput | NotFinite:
    floats = [out.mean, out.std, out.weights, out.per_objective, out.rated, out.residual]
    if all(values is None or np.isfinite(values).all() for values in floats):
        return out
    return NotFinite("the model's reward of a text is not a finite number")
