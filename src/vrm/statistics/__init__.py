"""Intervals, tests and draws; nothing here knows a table or a model."""
