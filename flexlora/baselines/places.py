"""Where the baselines sit, by a module's name.

One regular expression a place, an alternative a family of backbones, matched against the whole name. Each is anchored
to the layers of a transformer, so that a pooler's `dense` or a ViT's `patch_embed.proj` is never among them. A tuner's
`target_modules` is one of these unless it is set.
"""

from __future__ import annotations

BERT = r"encoder\.layer\.\d+"  # RoBERTa, ELECTRA and DeBERTa are named alike
DISTILBERT = r"transformer\.layer\.\d+"
LLAMA = r"layers\.\d+"  # Mistral, Qwen2, …
VIT = r"blocks\.\d+"  # timm

_BERT_ATTENTION = r"attention\.self\.(query|key|value|query_proj|key_proj|value_proj|in_proj)"


def _any_of(*names: str) -> str:
    return rf"(.*\.)?({'|'.join(names)})"


ATTENTION_OUTPUT = (
    rf"{BERT}\.attention\.output\.dense",
    rf"{DISTILBERT}\.attention\.out_lin",
    rf"{LLAMA}\.self_attn\.o_proj",
    rf"{VIT}\.attn\.proj",
)
MLP_OUTPUT = (
    rf"{BERT}\.output\.dense",
    rf"{DISTILBERT}\.ffn\.lin2",
    rf"{LLAMA}\.mlp\.down_proj",
    rf"{VIT}\.mlp\.fc2",
)
LINEARS = (
    *ATTENTION_OUTPUT,
    *MLP_OUTPUT,
    rf"{BERT}\.({_BERT_ATTENTION}|intermediate\.dense)",
    rf"{DISTILBERT}\.(attention\.[qkv]_lin|ffn\.lin1)",
    rf"{LLAMA}\.(self_attn\.[qkv]_proj|mlp\.(gate|up)_proj)",
    rf"{VIT}\.(attn\.qkv|mlp\.fc1)",
)
NORMS = (
    rf"embeddings\.LayerNorm|{BERT}\.(attention\.)?output\.LayerNorm",
    rf"{DISTILBERT}\.(sa|output)_layer_norm",
    rf"{LLAMA}\.(input|post_attention)_layernorm",
    rf"{VIT}\.norm[12]",
    # The last one, of a LLaMA or a ViT; timm has more of that name, most of them empty.
    r"(?<!patch_embed\.)(?<!attn\.)(?<!mlp\.)norm|norm_pre|fc_norm",
)

BEFORE_RESIDUAL = _any_of(*ATTENTION_OUTPUT, *MLP_OUTPUT)
"""The linears whose outputs are added to the residual stream: of the attention, and of the MLP."""

AFTER_MLP = _any_of(*MLP_OUTPUT)
"""The MLP's last linear."""

MLP = _any_of(rf"{BERT}\.output", rf"{DISTILBERT}\.ffn", rf"{LLAMA}\.mlp", rf"{VIT}\.mlp")
"""The MLP as a whole; of the BERT family its second half, which is handed the MLP's input for the residual sum."""

ALL_LINEARS = _any_of(*LINEARS)
"""Every linear of the layers."""

EVERY_OPERATION = _any_of(*LINEARS, *NORMS, r"patch_embed\.proj")
"""Every linear and norm, and the convolution that makes a ViT's patches."""

BLOCKS = _any_of(VIT)
"""The blocks of a ViT."""
