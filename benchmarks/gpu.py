"""Everything that a GPU has to show, in one call: kernels against the padded reference, then the other scripts.

    python benchmarks/gpu.py --out results/gpu                  # one card of 140 GB, a quarter of an hour
    python benchmarks/gpu.py --out results/gpu --batch 4        # one card of 80 GB
    python benchmarks/gpu.py --out results/gpu --minutes 6      # as far as it gets, the most important parts first
    python benchmarks/gpu.py --out /tmp/gpu --shape tiny        # minutes on a laptop's CPU: do all parts run?
    python benchmarks/gpu.py --kernels                          # the first part by itself

* Each part is a process of its own with a time limit, so that one that hangs or runs out of memory costs no other.
* Every result is a line of `gpu.jsonl`, written as soon as it is there; `log.txt` has all output, `parts.jsonl` how
  each part ended. `python benchmarks/gpu.py --table results/gpu/gpu.jsonl` prints the tables of `docs/benchmarks.md`.
* `kernels`: rewards and gradients of a pair loss with each attention kernel, against padded float32 rows: small models
  of every family; then, with random weights of the large shape, how far bfloat16 rewards are from float32's and how
  many pairs change sides.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    """Run the parts, one part, or print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("qwen3-4b", "qwen3-0.6b", "tiny"), default="qwen3-4b")
    parser.add_argument("--out", type=Path, default=Path("results/gpu"))
    parser.add_argument("--batch", type=int, default=16, help="pairs a forward pass; a step has 32")
    parser.add_argument("--minutes", type=float, default=30.0, help="no part begins later, and none runs longer")
    parser.add_argument("--only", nargs="+", help="parts by name")
    parser.add_argument("--pairs", type=Path, help="real pairs for one more measurement: prompt, chosen, rejected")
    parser.add_argument("--kernels", action="store_true", help="the first part, in this process")
    parser.add_argument("--table", type=Path, help="print the tables of such a file")
    options = parser.parse_args()
    if options.table:
        return print("\n\n".join(tables(read_lines(options.table))))
    options.out.mkdir(parents=True, exist_ok=True)
    if options.kernels:
        return keep(options.out / "gpu.jsonl", kernels(options.shape))
    run_parts(options)
    return None


def parts(options: argparse.Namespace) -> dict[str, tuple[int, list[str]]]:
    """Of each part its limit in seconds and its command, the most important first."""
    tiny, card = options.shape == "tiny", shutil.which("nvidia-smi") is not None
    lines = ["--json", str(options.out / "gpu.jsonl"), "--out", str(options.out / "gpu.csv")]
    model = ["--shape", options.shape]
    cuda = ["--bf16"] if card else []
    ours = ["ours_rm+varlen", "ours_rm+varlen+compile"] if card else ["ours_rm", "ours_rm+compile"]
    training = ["reward_training.py", *model, *cuda, "--checkpointing", *lines]
    batch = 2 if tiny else options.batch
    sizes = ["--batch", str(batch), "--accumulation", str(2 if tiny else max(1, 32 // batch))]
    rounds = ["--steps", "1", "--rounds", "1" if tiny else "5"]
    few = [*sizes, "--steps", "1", "--rounds", "1" if tiny else "3"]
    vrm = ours[-1].replace("ours_rm", "ours_vrm")
    real = ["--pairs", str(options.pairs)] if options.pairs else []
    kernel_names = ["ours_rm"] if not card else ["ours_rm", "ours_rm+flex", "ours_rm+varlen"]
    return {
        "kernels": (150, ["gpu.py", "--kernels", *model, "--out", str(options.out)]),
        "training": (240, [*training, *sizes, *rounds, "--contestants", "trl", *ours, vrm]),
        "profile": (150, [*training, *few, "--rounds", "1", "--profile", "--contestants", "trl", ours[-1]]),
        **({"real_pairs": (150, [*training, *few, *real, "--contestants", "trl", ours[-1]])} if real else {}),
        "attention": (150, [*training, *few, "--contestants", *kernel_names]),
        "adamw_8bit": (120, [*training, *few, "--optimizer", "adamw_torch_8bit", "--contestants", ours[0]]),
        "scoring": (120, ["scoring.py", *model, *cuda, "--prompts", "2" if tiny else "32", *lines, "--rounds", "5"]),
        "memory": (240, ["reward_memory.py", *model, "--out", str(options.out / "gpu.jsonl")]),
        "policy": (300, ["policy_step.py", "--lora", "--shape", "tiny" if tiny else "qwen2.5-7b", "--out",
                         str(options.out / "gpu.jsonl")]),
        "policy_4bit": (300, ["policy_step.py", "--lora", "--load-in-4bit", "--shape", "tiny" if tiny else "qwen2.5-7b",
                              "--out", str(options.out / "gpu.jsonl")]),
    }  # fmt: skip


def run_parts(options: argparse.Namespace) -> None:
    """Run each part in a process of its own, as long as there is time."""
    begun = time.monotonic()
    for name, (limit, command) in parts(options).items():
        left = 60 * options.minutes - (time.monotonic() - begun)
        limit *= 1 if shutil.which("nvidia-smi") else 5
        if (options.only and name not in options.only) or left < 20:
            continue
        started = time.monotonic()
        print(f"== {name}: {' '.join(command)}", flush=True)
        with (options.out / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"== {name}\n")
            log.flush()
            try:
                ended = subprocess.run(
                    [sys.executable, str(HERE / command[0]), *command[1:]],
                    stdout=log, stderr=subprocess.STDOUT, timeout=min(limit, left), check=False,
                ).returncode  # fmt: skip
            except subprocess.TimeoutExpired:
                ended = "time limit"
        keep(
            options.out / "parts.jsonl",
            [{"part": name, "ended": ended, "seconds": round(time.monotonic() - started, 1)}],
        )
        if ended:
            print("".join((options.out / "log.txt").read_text(encoding="utf-8").splitlines(keepends=True)[-12:]))


def keep(path: Path, found: Sequence[dict[str, object]] | Iterator[dict[str, object]]) -> None:
    """Append results as JSON lines, each as soon as it is there."""
    for result in found:
        print(json.dumps(result), flush=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")


def kernels(shape: str) -> Iterator[dict[str, object]]:
    """Each kernel against padded float32 rows, family by family, then precision at the large shape."""
    import torch
    from side_by_side import environment, matrix_rate

    where = environment()
    if torch.cuda.is_available():
        yield {"what": "matrix_rate", "teraflops": round(matrix_rate() / 1e12, 1), **where}
    for family, model in families():
        yield from compared(family, model, where)
    yield from precision(shape, where)


def families() -> Iterator[tuple[str, object]]:
    """A small random sequence classifier of each family, heads of 64 so that every kernel takes them."""
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        Gemma2Config,
        Gemma3TextConfig,
        GemmaConfig,
        LlamaConfig,
        MistralConfig,
        Qwen2Config,
        Qwen3Config,
        set_seed,
    )

    sizes = {
        "vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048, "pad_token_id": 0,
        "num_labels": 1,
    }  # fmt: skip
    head, window = {"head_dim": 64}, {"sliding_window": 48}
    mixed = {"layer_types": ["sliding_attention", "full_attention"] * 2}
    for name, config in {
        "qwen2": Qwen2Config(**sizes),
        "qwen3": Qwen3Config(**sizes, **head),
        "llama": LlamaConfig(**sizes, **head),
        "mistral, sliding": MistralConfig(**sizes, **head, **window),
        "gemma": GemmaConfig(**sizes, **head),
        "gemma2": Gemma2Config(**sizes, **head, **window, query_pre_attn_scalar=64),
        "gemma3": Gemma3TextConfig(**sizes, **head, **window, **mixed),
    }.items():
        set_seed(1)
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():  # away from ones and zeros, which hide what is left out
            parameter.data += 0.02 * torch.randn_like(parameter)
        yield name, model.to("cuda" if torch.cuda.is_available() else "cpu")


def compared(family: str, model: object, where: dict[str, object]) -> Iterator[dict[str, object]]:
    """Rewards and gradients of each kernel and precision, as distances from padded float32 rows."""
    import torch

    from vrm.models.shared_prefix import by_prompt, pack, share_prefixes

    cuda = torch.cuda.is_available()
    pairs = random_pairs(512, pairs=12, longest=200)
    groups, order = by_prompt(pairs)
    expected = outcome(model, padded(pairs), False)
    batches = {"padded": padded(pairs)}
    share_prefixes(model)
    for kernel in ("groups", "blocks", "varlen") if cuda else ("groups",):
        batches[kernel] = pack(groups, 0, 2048, order, kernel).inputs()
    for half in (False, True):
        for kernel, batch in batches.items():
            result = {"what": "kernel", "family": family, "kernel": kernel, "precision": "bf16" if half else "float32"}
            try:
                rewards, gradient = outcome(model, batch, half)
                result |= {
                    "rewards": float((rewards - expected[0]).norm() / expected[0].norm()),
                    "gradients": float((gradient - expected[1]).norm() / expected[1].norm()),
                }
            except Exception as error:  # what a kernel refuses is a result too
                result["error"] = f"{type(error).__name__}: {error}"[:300]
            yield result | where


def random_pairs(vocabulary: int, pairs: int, longest: int) -> list[tuple[list[int], int]]:
    """Texts, chosen before rejected, and their prompts' lengths."""
    import numpy as np

    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, vocabulary, rng.integers(3, longest)).tolist() for _ in range(pairs)]
    return [
        (prompt + rng.integers(1, vocabulary, rng.integers(1, longest)).tolist(), len(prompt))
        for _ in range(2)
        for prompt in prompts
    ]


def padded(texts: list[tuple[list[int], int]]) -> dict[str, object]:
    """Inputs of a stock classifier, padded on the right."""
    import torch

    longest = max(len(ids) for ids, _ in texts)
    ids, mask = torch.zeros(len(texts), longest, dtype=torch.long), torch.zeros(len(texts), longest, dtype=torch.long)
    for row, (text, _) in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = torch.tensor(text), 1
    return {"input_ids": ids, "attention_mask": mask}


def outcome(model: object, batch: dict[str, object], half: bool) -> tuple[object, object]:
    """Rewards, and all gradients of a Bradley-Terry loss as one vector, in float64 on the CPU."""
    import torch

    device = model.device
    inputs = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    model.train().zero_grad()
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        rewards = model(**inputs).logits.squeeze(-1).float()
    chosen, rejected = rewards.chunk(2)
    (-torch.nn.functional.logsigmoid(chosen - rejected).mean() + rewards.square().mean()).backward()
    gradients = [parameter.grad.flatten().double().cpu() for parameter in model.parameters()]
    return rewards.detach().double().cpu(), torch.cat(gradients)


def precision(shape: str, where: dict[str, object]) -> Iterator[dict[str, object]]:
    """Rewards of pairs in bfloat16 against float32's, at a large shape with random weights."""
    import torch
    from side_by_side import SHAPES, made_up_words, model_config, tokenizer_of
    from transformers import AutoModelForSequenceClassification, set_seed

    from vrm.models.shared_prefix import by_prompt, pack, share_prefixes

    import numpy as np  # isort: skip

    cuda = torch.cuda.is_available()
    tokenizer = tokenizer_of([" ".join(made_up_words(np.random.default_rng(0)))])
    set_seed(0)
    with torch.device("cuda" if cuda else "cpu"):
        model = AutoModelForSequenceClassification.from_config(model_config(shape, tokenizer), dtype=torch.float32)
    share_prefixes(model.eval())
    pairs = random_pairs(SHAPES[shape].vocabulary, pairs=64 if cuda else 8, longest=400)
    rewards = {}
    with torch.inference_mode():
        for name, dtype, kernel in (
            ("float32", torch.float32, "groups"),
            ("bf16", torch.bfloat16, "groups"),
            ("bf16, varlen", torch.bfloat16, "varlen"),
        ):
            if kernel == "varlen" and not cuda:
                continue
            model.to(dtype)
            found = []
            for start in range(0, len(pairs) // 2, 8):
                numbers = [*range(start, start + 8), *range(len(pairs) // 2 + start, len(pairs) // 2 + start + 8)]
                groups, order = by_prompt([pairs[i] for i in numbers if i < len(pairs)])
                batch = pack(groups, 0, None, order, kernel).inputs()
                batch = {k: v.to(model.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
                found.append(model(**batch).logits.squeeze(-1).float().cpu().view(2, -1))
            rewards[name] = torch.cat(found, dim=1)  # (2, pairs)
    exact = rewards.pop("float32")
    for name, values in rewards.items():
        apart = (values - exact).abs()
        flipped = ((values[0] > values[1]) != (exact[0] > exact[1])).float().mean()
        yield {
            "what": "precision", "model": shape, "how": name, "pairs": exact.shape[1],
            "spread": float(exact.std()), "largest": float(apart.max()), "median": float(apart.median()),
            "flipped": float(flipped), **where,
        }  # fmt: skip
    del model
    gc.collect()


def read_lines(path: Path) -> list[dict[str, object]]:
    """All results of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


TABLES = {
    "Kernels against padded float32 rows, distance over norm": (
        lambda row: row.get("what") == "kernel",
        ("family", "kernel", "precision", "rewards", "gradients", "error"),
    ),
    "bfloat16 rewards against float32's": (
        lambda row: row.get("what") == "precision",
        ("model", "how", "pairs", "spread", "median", "largest", "flipped"),
    ),
    "Training": (
        lambda row: "contestant" in row and "passes_a_step" in row,
        ("model", "pairs", "optimizer", "contestant", "seconds", "tokens_per_second", "times_as_fast_as_trl", "mfu",
         "arithmetic", "predicted_gib", "measured_gib"),
    ),
    "Milliseconds of a turn by kind of kernel": (
        lambda row: row.get("what") == "profile",
        ("contestant", "matrix products", "attention", "optimiser", "compiled elementwise", "elementwise and copies",
         "other"),
    ),
    "Scoring": (
        lambda row: "contestant" in row and "texts" in row,
        ("model", "texts", "contestant", "seconds", "tokens_per_second", "times_as_fast_as_padded"),
    ),
    "Steps": (
        lambda row: row.get("what") in ("dpo_step", "ppo_update", "vrm_20_steps", "score_1000_pairs"),
        ("what", "shape", "seconds", "tokens_per_second", "pairs_per_second", "peak_gib", "predicted_total_gib",
         "allocated_gib", "reserved_gib"),
    ),
}  # fmt: skip


def tables(lines: list[dict[str, object]]) -> Iterator[str]:
    """A Markdown table of each kind that has results."""
    for title, (belongs, columns) in TABLES.items():
        rows = [row for row in lines if belongs(row)]
        used = [column for column in columns if any(row.get(column) is not None for row in rows)]
        if not rows:
            continue
        body = ["| " + " | ".join(_cell(row.get(column)) for column in used) + " |" for row in rows]
        yield "\n".join([f"**{title}**", "", f"| {' | '.join(used)} |", "|" + "---|" * len(used), *body])


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) and value < 100 else str(value)


if __name__ == "__main__":
    main()
