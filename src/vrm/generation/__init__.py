"""How policies answer: one interface, two engines."""

from vrm.generation.base import Engine, Sampling, decode
from vrm.generation.engines import load_engine, make_engine

__all__ = ["Engine", "Sampling", "decode", "load_engine", "make_engine"]
