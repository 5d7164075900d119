"""Adapted and fully trained modules of every described architecture, on tiny random models."""

import re

import pytest
from peft import get_peft_model
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    RobertaConfig,
)

from flexlora.architectures import ENCODERS
from flexlora.tuner import FlexLoraConfig

LAYERS = 2
SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
CONFIGS = {
    "bert": BertConfig(**SMALL),
    "roberta": RobertaConfig(**SMALL),
    "electra": ElectraConfig(**SMALL, embedding_size=8),
    "deberta": DebertaConfig(**SMALL),
    # As in DeBERTaV3: relative attention with shared keys.
    "deberta-v2": DebertaV2Config(
        **SMALL, relative_attention=True, position_buckets=8, share_att_key=True, pos_att_type=["p2c", "c2p"]
    ),
    "distilbert": DistilBertConfig(
        vocab_size=50, dim=16, hidden_dim=32, n_layers=LAYERS, n_heads=2, max_position_embeddings=32
    ),
}
# The names of one layer's linears inside the layer. DeBERTa v1 has one linear for query, key and value.
BERT_LINEARS = {
    *(f"attention.self.{name}" for name in ("query", "key", "value")),
    *("attention.output.dense", "intermediate.dense", "output.dense"),
}
LINEARS = {
    "bert": BERT_LINEARS,
    "roberta": BERT_LINEARS,
    "electra": BERT_LINEARS,
    "deberta": {"attention.self.in_proj", "attention.output.dense", "intermediate.dense", "output.dense"},
    "deberta-v2": {f"{name}_proj" if ".self." in name else name for name in BERT_LINEARS},
    "distilbert": {
        *(f"attention.{name}_lin" for name in ("q", "k", "v", "out")),
        *("ffn.lin1", "ffn.lin2"),
    },
}


def test_every_described_architecture_is_tested():
    assert set(CONFIGS) == set(ENCODERS) == set(LINEARS)


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_target_modules_are_all_linears_of_every_layer_without_the_head(name):
    model = AutoModelForSequenceClassification.from_config(CONFIGS[name])
    assert CONFIGS[name].model_type == name
    modules = dict(model.named_modules())
    targets = [module for module in modules if re.fullmatch(ENCODERS[name].target_modules, module)]
    found = {re.sub(r".*\.layer\.\d+\.", "", target) for target in targets}
    assert found == LINEARS[name]
    assert len(targets) == LAYERS * len(LINEARS[name])
    assert all(isinstance(modules[target], nn.Linear) for target in targets)


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_modules_outside_the_pretrained_encoder_train_fully(name):
    """The head has all weights that an encoder checkpoint leaves random. It trains together with the adapter."""
    model = AutoModelForSequenceClassification.from_config(CONFIGS[name])
    outside = {n.split(".")[0] for n, _ in model.named_parameters() if not n.startswith(f"{model.base_model_prefix}.")}
    architecture = ENCODERS[name]
    assert outside <= set(architecture.head_modules)
    config = FlexLoraConfig(
        task_type="SEQ_CLS",
        target_modules=architecture.target_modules,
        modules_to_save=list(architecture.head_modules),
        total_step=100,
        tinit=10,
        tfinal=10,
        deltaT=10,
    )
    adapted = get_peft_model(model, config)
    wrapped = {n.rsplit(".", 1)[-1] for n, m in adapted.named_modules() if isinstance(m, ModulesToSaveWrapper)}
    assert wrapped == set(architecture.head_modules)
    assert all(
        p.requires_grad == ("lora_" in n or "flexlora_" in n or ".modules_to_save." in n)
        for n, p in adapted.named_parameters()
    )
