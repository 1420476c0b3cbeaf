"""Table 1 and the figures of the judged benchmarks, and the differences between judged policies."""
