"""A reward model behind the server: an untrained VRM, clients in this process, and `vrm serve` in one of its own."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import asynccontextmanager

import httpx2
import torch
from transformers import AutoTokenizer

from vrm.models.scoring import load_reward_model
from vrm.models.templates import generation_prompt_ids
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


class Started:
    """`vrm serve` in a process of its own."""

    def __init__(self, *options, token=None):
        environment = {name: value for name, value in os.environ.items() if name != "VRM_SERVE_TOKEN"}
        if token:
            environment["VRM_SERVE_TOKEN"] = token
        command = [sys.executable, "-m", "vrm", "serve", "--port", "0", *map(str, options)]
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        line = self.process.stdout.readline()
        found = re.search(r":(\d+)", line)
        assert found, line + self.process.stderr.read()
        self.port = int(found[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def ask(self, path, body, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err
