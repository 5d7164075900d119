"""A small GPT-2, whose linears are Conv1D."""

from __future__ import annotations

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
)


def gpt2():
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=20, n_positions=16)
    config.attn_pdrop = config.embd_pdrop = config.resid_pdrop = 0.0
    return GPT2LMHeadModel(config).eval(), torch.arange(10).view(2, 5)
