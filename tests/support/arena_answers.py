"""Answers in Arena-Hard's record shape, and the logistic function written out apart from the code under test."""

import numpy as np


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def answer(model, question, text="Yes.", tokens=10):
    turn = {"content": text} if tokens is None else {"content": text, "token_len": tokens}
    return {"model_id": model, "question_id": question, "choices": [{"index": 0, "turns": [turn]}]}
