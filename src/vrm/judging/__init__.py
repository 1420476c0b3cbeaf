"""Asking a judge without losing a reply or paying for one twice."""

from vrm.judging.client import Judge, JudgeError
from vrm.judging.cost import Estimate, Spending, estimate, not_stored, spending, spending_of, total
from vrm.judging.courier import ask_apart
from vrm.judging.exchange import Failed, Reply, Request, Unanswered, Unusable, Usage, request_key
from vrm.judging.store import Store, StoreError

__all__ = [
    "Estimate",
    "Failed",
    "Judge",
    "JudgeError",
    "Reply",
    "Request",
    "Spending",
    "Store",
    "StoreError",
    "Unanswered",
    "Unusable",
    "Usage",
    "ask_apart",
    "estimate",
    "not_stored",
    "request_key",
    "spending",
    "spending_of",
    "total",
]
