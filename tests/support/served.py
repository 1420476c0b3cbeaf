"""A reward model behind the server: an untrained VRM, and clients in this process."""

from contextlib import asynccontextmanager

import httpx2
import torch
from transformers import AutoTokenizer

from vrm.models.scoring import load_reward_model
from vrm.models.turns import generation_prompt_ids
from vrm.models.vrm import VrmForSequenceClassification
from vrm.serving.app import create_app

ASPECTS = ["clarity", "candour"]


def save_vrm(backbone, directory, **head):
    """An untrained VRM on a backbone."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    model = VrmForSequenceClassification.from_backbone(
        str(backbone), aspects=ASPECTS, generation_prompt_ids=generation_prompt_ids(tokenizer), **head
    )
    model.config.reward_limits = {"max_prompt_length": 64, "max_length": 96}
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def load(directory, **options):
    """As `vrm serve` loads it."""
    return load_reward_model(directory, **{"posterior_samples": 16, **options})


@asynccontextmanager
async def client_of(model, **options):
    """An HTTP client of the application, which runs as long."""
    app = create_app(model, "tiny", **options)
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://vrm") as client,
    ):
        yield client
