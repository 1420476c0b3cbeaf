"""What a run will take before it runs: memory, GPU hours, disk, judge calls. Imports neither torch nor transformers."""
