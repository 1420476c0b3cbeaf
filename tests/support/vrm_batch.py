"""A batch of texts as a VRM takes it."""

import torch

from vrm.models.text import TextEncoder

PROMPT = [{"role": "user", "content": "alpha beta"}]


def batch(tokenizer, responses):
    """Ids, mask and prompt lengths of responses to one prompt."""
    texts = TextEncoder(tokenizer, 64, 96).encode([PROMPT] * len(responses), responses)
    padded = tokenizer.pad({"input_ids": [text.ids for text in texts]}, return_tensors="pt")
    return padded["input_ids"], padded["attention_mask"], torch.tensor([text.prompt_length for text in texts])
