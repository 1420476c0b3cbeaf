"""A judged policy made by hand."""

from vrm.reporting.judged import judged_models


def model_of(config, method, base="qwen3"):
    return next(model for model in judged_models(config) if (model.base, model.method) == (base, method))
