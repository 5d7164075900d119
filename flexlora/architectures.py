"""Which modules of a backbone are adapted and which train whole, by the names that its family gives them.

Every regular expression is matched against a module's whole name and is anchored to the layers of a transformer, so
that a pooler's `dense` or a ViT's `patch_embed.proj` is never among them. A method takes one of the places unless its
`target_modules` says otherwise; a low-rank method takes the architecture's `target_modules`, as the paper does. Only a
low-rank tuner that is used outside the runner without `target_modules` goes by PEFT's own table.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Names within one layer, as regular expressions; `layer` is the layer itself."""

    layer: str
    attention_inputs: str
    attention_output: str
    mlp: str
    mlp_inputs: str
    mlp_output: str
    norms: str

    @property
    def linears(self) -> tuple[str, ...]:
        """Every linear of a layer."""
        return self.attention_inputs, self.attention_output, self.mlp_inputs, self.mlp_output


# RoBERTa, ELECTRA and DeBERTa have the same names, but for query, key and value, which DeBERTa v1 holds in one linear.
BERT = Family(
    layer=r"encoder\.layer\.\d+",
    attention_inputs=r"attention\.self\.(query|key|value|query_proj|key_proj|value_proj|in_proj)",
    attention_output=r"attention\.output\.dense",
    mlp="output",  # its second half, which is handed the MLP's input for the residual sum
    mlp_inputs=r"intermediate\.dense",
    mlp_output=r"output\.dense",
    norms=r"(attention\.)?output\.LayerNorm",
)
DISTILBERT = Family(
    layer=r"transformer\.layer\.\d+",
    attention_inputs=r"attention\.[qkv]_lin",
    attention_output=r"attention\.out_lin",
    mlp="ffn",
    mlp_inputs=r"ffn\.lin1",
    mlp_output=r"ffn\.lin2",
    norms="(sa|output)_layer_norm",
)
LLAMA = Family(  # Mistral, Qwen2, Gemma and many more
    layer=r"layers\.\d+",
    attention_inputs=r"self_attn\.[qkv]_proj",
    attention_output=r"self_attn\.o_proj",
    mlp="mlp",
    mlp_inputs=r"mlp\.(gate|up)_proj",
    mlp_output=r"mlp\.down_proj",
    norms="(input|post_attention)_layernorm",
)
VIT = Family(  # timm's
    layer=r"blocks\.\d+",
    attention_inputs=r"attn\.qkv",
    attention_output=r"attn\.proj",
    mlp="mlp",
    mlp_inputs=r"mlp\.fc1",
    mlp_output=r"mlp\.fc2",
    norms="norm[12]",
)
FAMILIES = (BERT, DISTILBERT, LLAMA, VIT)
# Norms outside the layers: of BERT's embeddings, and the last one of a LLaMA or a ViT (timm has more norms of that
# name, most of them empty).
OTHER_NORMS = (r"embeddings\.LayerNorm", r"(?<!patch_embed\.)(?<!attn\.)(?<!mlp\.)norm|norm_pre|fc_norm")


def _any_of(*names: str) -> str:
    return rf"(.*\.)?({'|'.join(names)})"


def _in(family: Family, *names: str) -> str:
    return rf"{family.layer}\.({'|'.join(names)})"


# --- places ------------------------------------------------------------------------------------------------------

BEFORE_RESIDUAL = _any_of(*(_in(family, family.attention_output, family.mlp_output) for family in FAMILIES))
"""The linears whose outputs are added to the residual stream: of the attention, and of the MLP."""

AFTER_MLP = _any_of(*(_in(family, family.mlp_output) for family in FAMILIES))
"""The MLP's last linear."""

MLP = _any_of(*(_in(family, family.mlp) for family in FAMILIES))
"""The MLP as a whole; of the BERT family its second half."""

ALL_LINEARS = _any_of(*(_in(family, *family.linears) for family in FAMILIES))
"""Every linear of the layers."""

EVERY_OPERATION = _any_of(
    *(_in(family, *family.linears, family.norms) for family in FAMILIES), *OTHER_NORMS, r"patch_embed\.proj"
)
"""Every linear and norm, and the convolution that makes a ViT's patches."""

BLOCKS = _any_of(VIT.layer)
"""The blocks of a ViT."""


# --- architectures -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Architecture:
    """What a low-rank method adapts, and what trains whole beside it.

    Attributes:
        target_modules: matched against a module's whole name.
        head_modules: last names of what a pretrained checkpoint leaves random, or what the paper trains beside the
            adapter: pooler and classifier.
    """

    target_modules: str
    head_modules: tuple[str, ...]


_BERT_LINEARS = _any_of(_in(BERT, *BERT.linears))

ENCODERS = {
    "bert": Architecture(_BERT_LINEARS, ("pooler", "classifier")),
    "roberta": Architecture(_BERT_LINEARS, ("classifier",)),
    "electra": Architecture(_BERT_LINEARS, ("classifier",)),
    "deberta": Architecture(_BERT_LINEARS, ("pooler", "classifier")),
    "deberta-v2": Architecture(_BERT_LINEARS, ("pooler", "classifier")),
    "distilbert": Architecture(_any_of(_in(DISTILBERT, *DISTILBERT.linears)), ("pre_classifier", "classifier")),
}
"""By the `model_type` of a transformers configuration."""

# The paper's five of each layer; a language model brings its own head, which stays as it is.
CAUSAL_LM = Architecture(_any_of(_in(LLAMA, LLAMA.attention_inputs, r"mlp\.up_proj", LLAMA.mlp_output)), ())

IMAGE_CLASSIFIER = Architecture(_any_of(_in(VIT, *VIT.linears)), ("head",))
"""timm's ViT; a model with another head has its head's own names."""
