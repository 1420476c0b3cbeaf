"""Asking a judge without losing a reply or paying for one twice."""

from vrm.judging.asking import ask_apart
from vrm.judging.client import Judge, JudgeError
from vrm.judging.exchange import Failed, Reply, Request, Unanswered, Unusable, Usage, request_key
from vrm.judging.store import Estimate, Spending, Store, StoreError, estimate, not_stored, spending, spending_of, total

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
