"""How policies answer: one interface, two engines."""

from vrm.generation.base import Engine, decode
from vrm.generation.engines import make_engine

__all__ = ["Engine", "decode", "make_engine"]
