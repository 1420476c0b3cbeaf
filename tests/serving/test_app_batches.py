"""Texts of several requests together: nobody gets another's rewards, nobody spoils another's, and the queue ends."""

import asyncio
import threading

import numpy as np
import pytest

from vrm.models.base import RewardOutput
from vrm.serving.app import Batcher, Full, NotFinite


class Lengths:
    """Rewards a response by its length; refuses one that says so; can be held."""

    aspects = ()

    def __init__(self):
        self.calls, self.free = [], threading.Event()
        self.free.set()

    def score(self, prompts, responses):
        self.free.wait(10)
        self.calls.append(len(responses))
        if "refuse" in responses:
            raise ValueError("refused")
        mean = np.array([np.nan if response == "nan" else float(len(response)) for response in responses])
        return RewardOutput(mean, np.zeros(len(responses), dtype=bool), std=np.zeros(len(responses)))


async def held(model, batcher, first="first"):
    """A batcher whose model is at work on one text, so that what comes now waits."""
    model.free.clear()
    task = asyncio.create_task(batcher.score(["p"], [first]))
    await asyncio.sleep(0.05)
    return task


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def test_those_who_wait_share_a_call_and_get_their_own():
    async def scene():
        model = Lengths()
        async with Batcher(model, batch_texts=8, queue_texts=100) as batcher:
            first = await held(model, batcher)
            rest = [asyncio.create_task(batcher.score(["p"] * n, ["x" * n] * n)) for n in (1, 2, 3, 4, 9, 1)]
            await asyncio.sleep(0.05)
            assert batcher.texts == 21
            model.free.set()
            found = [out.mean.tolist() for out in await asyncio.gather(first, *rest)]
        assert found == [[5.0], *([float(n)] * n for n in (1, 2, 3, 4, 9, 1))]
        assert model.calls == [1, 6, 4, 9, 1]
        assert batcher.texts == 0

    run(scene())


def test_one_that_is_refused_spoils_nobody():
    async def scene():
        model = Lengths()
        async with Batcher(model, batch_texts=8, queue_texts=100) as batcher:
            first = await held(model, batcher)
            texts = ("a", "refuse", "nan", "abc")
            rest = [asyncio.create_task(batcher.score(["p"], [text])) for text in texts]
            await asyncio.sleep(0.05)
            model.free.set()
            good, refused, nan, best = await asyncio.gather(*rest, return_exceptions=True)
            await first
        assert (good.mean[0], best.mean[0]) == (1.0, 3.0)
        assert isinstance(refused, ValueError)
        assert isinstance(nan, NotFinite)

    run(scene())


def test_the_queue_ends_and_who_gives_up_makes_room():
    async def scene():
        model = Lengths()
        async with Batcher(model, batch_texts=1, queue_texts=3) as batcher:
            first = await held(model, batcher)
            waiting = asyncio.create_task(batcher.score(["p"] * 2, ["a"] * 2))
            await asyncio.sleep(0.05)
            with pytest.raises(Full):
                await batcher.score(["p"], ["b"])
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            later = asyncio.create_task(batcher.score(["p"], ["cc"]))
            await asyncio.sleep(0.05)
            model.free.set()
            assert (await later).mean.tolist() == [2.0]
            await first
        assert model.calls == [1, 1]  # what was given up is not scored

    run(scene())
