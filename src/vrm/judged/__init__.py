"""The judged benchmarks: a file each with its prompts, verdicts and scores."""
