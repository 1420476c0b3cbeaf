"""TRL's GRPOTrainer, rewarded by a reward model behind `vrm serve`.

    vrm serve --model results/demo/reward/vrm/seed1/model --port 8000
    python examples/grpo_over_http.py --url http://127.0.0.1:8000 --policy DIR --prompts prompts.jsonl --out DIR

The trainer's machine needs neither the reward model nor this package: a reward function is one POST. Where the server
asks for a token, it is read from the environment variable VRM_SERVE_TOKEN. A full server answers 503 and says when to
ask again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer


class ServedReward:
    """A reward function of TRL's trainers that asks a server.

    Args:
        url: of the server, e.g. `http://127.0.0.1:8000`.
    """

    def __init__(self, url: str) -> None:
        token = os.environ.get("VRM_SERVE_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.__name__ = "vrm"
        self.http = httpx2.Client(base_url=url, headers=headers, timeout=180)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """Rewards of N completions; logs the weights and standard deviations that come with them."""
        turns = [completion if isinstance(completion, str) else completion[-1]["content"] for completion in completions]
        found = self._asked({"prompts": list(prompts), "responses": turns})
        if log_metric := columns.get("log_metric"):
            if found["std"]:
                log_metric("vrm/std", sum(found["std"]) / len(turns))
            for k, aspect in enumerate(found["aspects"] if found["weights"] else []):
                log_metric(f"vrm/weight/{aspect}", sum(row[k] for row in found["weights"]) / len(turns))
        return found["rewards"]

    def _asked(self, body: dict[str, Any]) -> dict[str, Any]:
        while (answer := self.http.post("/score", json=body)).status_code == 503:
            time.sleep(float(answer.headers.get("Retry-After", 1)))
        if answer.is_error:
            raise RuntimeError(f"the reward model answered {answer.status_code}: {answer.text}")
        return answer.json()


def main() -> None:
    """Train for a few steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--policy", required=True, help="directory or hub id of a language model")
    parser.add_argument("--prompts", type=Path, required=True, help="JSON lines with `prompt`: a text, or messages")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    rows = [json.loads(line)["prompt"] for line in options.prompts.read_text(encoding="utf-8").splitlines()]
    prompts = [[{"role": "user", "content": row}] if isinstance(row, str) else row for row in rows]
    trainer = GRPOTrainer(
        model=options.policy,
        reward_funcs=ServedReward(options.url),
        args=GRPOConfig(
            output_dir=str(options.out),
            max_steps=options.steps,
            logging_steps=1,
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=16,
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
        ),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
    )
    trainer.train()
    trainer.save_model(str(options.out))
    trainer.state.save_to_json(str(options.out / "trainer_state.json"))


if __name__ == "__main__":
    main()
