"""A reward function for verl that asks `vrm serve`.

verl starts its own servers for the reward models it is told of; one that runs already is asked by a function:

    reward.custom_reward_function.path=examples/verl_reward.py
    reward.custom_reward_function.name=compute_score

verl hands such a function the response as text, and of the prompt what the data have in `extra_info`: give your rows
`extra_info: {"prompt": ...}`, a text or a list of messages. The server's address is read from VRM_SERVE_URL, its token
from VRM_SERVE_TOKEN. Only the standard library is needed.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import urllib.error
import urllib.request
from typing import Any


async def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict[str, Any], **others: Any
) -> dict[str, float]:
    """The reward of one response; the other number goes to verl's logs."""
    prompt = extra_info["prompt"]
    body = {"prompts": [prompt if isinstance(prompt, str) else list(prompt)], "responses": [solution_str]}
    found = await asyncio.to_thread(_asked, body)
    return {"score": found["rewards"][0], **({"vrm_std": found["std"][0]} if found["std"] else {})}


def _asked(body: dict[str, Any]) -> dict[str, Any]:
    url = os.environ.get("VRM_SERVE_URL", "http://127.0.0.1:8000")
    headers = {"Content-Type": "application/json"}
    if token := os.environ.get("VRM_SERVE_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(f"{url}/score", json.dumps(body).encode(), headers)
    while True:
        try:
            with urllib.request.urlopen(request, timeout=180) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise RuntimeError(f"the reward model answered {error.code}: {error.read().decode()}") from None
            time.sleep(float(error.headers.get("Retry-After", 1)))
