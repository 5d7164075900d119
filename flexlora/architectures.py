"""The modules to adapt and the modules to train fully, for each family of backbones.

Every regular expression is matched against a module's full name and is anchored to the layers of a transformer, so it
never matches a pooler's `dense` or a ViT's `patch_embed.proj`. A method uses one of the places below by default. A
low-rank method uses the architecture's `target_modules`, as the paper does. Outside the runner a low-rank tuner without
`target_modules` uses PEFT's own table.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """The names of modules within one layer, as regular expressions. `layer` matches the layer itself."""

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


# RoBERTa, ELECTRA and DeBERTa have the same names, except that DeBERTa v1 has one linear for query, key and value.
BERT = Family(
    layer=r"encoder\.layer\.\d+",
    attention_inputs=r"attention\.self\.(query|key|value|query_proj|key_proj|value_proj|in_proj)",
    attention_output=r"attention\.output\.dense",
    mlp="output",  # the MLP's second half, which gets the MLP's input for the residual sum
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
VIT = Family(  # timm's; flexlora.models.split_image_classifier has three linears for query, key and value
    layer=r"blocks\.\d+",
    attention_inputs=r"attn\.(qkv|[qkv]_proj)",
    attention_output=r"attn\.proj",
    mlp="mlp",
    mlp_inputs=r"mlp\.fc1",
    mlp_output=r"mlp\.fc2",
    norms="norm[12]",
)
FAMILIES = (BERT, DISTILBERT, LLAMA, VIT)
# Norms outside the layers: the norm of BERT's embeddings, and the last norm of a LLaMA or a ViT (timm has more norms
# with that name, but most of them are empty).
OTHER_NORMS = (r"embeddings\.LayerNorm", r"(?<!patch_embed\.)(?<!attn\.)(?<!mlp\.)norm|norm_pre|fc_norm")


def _any_of(*names: str) -> str:
    return rf"(.*\.)?({'|'.join(names)})"


def _in(family: Family, *names: str) -> str:
    return rf"{family.layer}\.({'|'.join(names)})"


# --- places ------------------------------------------------------------------------------------------------------

BEFORE_RESIDUAL = _any_of(*(_in(family, family.attention_output, family.mlp_output) for family in FAMILIES))
"""The linears of attention and MLP whose outputs are added to the residual stream."""

AFTER_MLP = _any_of(*(_in(family, family.mlp_output) for family in FAMILIES))
"""The MLP's last linear."""

MLP = _any_of(*(_in(family, family.mlp) for family in FAMILIES))
"""The whole MLP, or in the BERT family its second half."""

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
    """The modules that a low-rank method adapts, and those that train fully with the adapter.

    Attributes:
        target_modules: a regular expression for full module names.
        head_modules: the last parts of module names. These modules are random after a pretrained checkpoint is loaded,
            or the paper trains them fully: pooler and classifier.
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
"""The architectures by the `model_type` of a transformers configuration."""

# The paper's five linears of each layer. A language model keeps its own head.
CAUSAL_LM = Architecture(_any_of(_in(LLAMA, LLAMA.attention_inputs, r"mlp\.up_proj", LLAMA.mlp_output)), ())

IMAGE_CLASSIFIER = Architecture(_any_of(_in(VIT, *VIT.linears)), ("head",))
"""The architecture of timm's ViT. A model with another head uses that head's names."""
