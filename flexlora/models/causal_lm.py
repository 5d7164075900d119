"""Language models for `AutoModelForCausalLM`, from the hub or from a folder."""

import logging
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexlora.architectures import CAUSAL_LM
from flexlora.errors import UserError, one_line
from flexlora.hub import is_cached, trouble_with
from flexlora.models import Backbone
from flexlora.models.leftovers import reset_config, reset_tokenizer
from flexlora.models.pretrained import pretrained, refuse_misfits
from flexlora.settings import ModelSettings, Quantization

if TYPE_CHECKING:
    import torch

log = logging.getLogger("flexlora")

LOCAL_HINT = "model=local model.path=DIR takes a language model from a folder"

# The protocol pads with token 0, which is masked. It is <unk> in LLaMA and "!" in LLaMA3, which has no spare token.
PAD = 0


# The number of bytes of a quantised weight. With 4 bits every 64 weights share a float32 scale.
PACKED = {Quantization["8bit"]: 1.0, Quantization["4bit"]: 0.5 + 4 / 64}


@dataclass
class CausalLm(Backbone):
    """A language model, which keeps its own head."""

    quantization: Quantization | None = None

    def weight_bytes(self) -> tuple[int, int]:
        """Return the bytes of the weights as loaded now, and after bitsandbytes quantises the linears."""
        from torch import nn

        whole, packed = super().weight_bytes()
        if self.quantization in PACKED:
            for name, module in self.model.named_modules():
                if isinstance(module, nn.Linear) and not name.endswith("lm_head"):
                    packed -= module.weight.numel() * module.weight.element_size()
                    packed += round(module.weight.numel() * PACKED[self.quantization])
        return whole, packed

    def logits(self, model: Any, batch: "Mapping[str, torch.Tensor]") -> "torch.Tensor":
        """Compute the logits of all tokens in training, and of the last token in evaluation, as generation does."""
        last = {} if model.training else {"logits_to_keep": 1}
        logits: torch.Tensor = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False, **last
        ).logits
        return logits


def load(settings: ModelSettings, num_labels: None = None) -> Backbone:
    """Load model and tokenizer. Code from a checkpoint is never run.

    Raises:
        UserError: `model.path` does not exist, the hub's model cannot be reached, weights or the head are missing, or
            the tokenizer has no end-of-sequence token.
    """
    with pretrained(settings, LOCAL_HINT) as (source, where):
        return _load(source, where, settings)


def _load(source: str, where: dict[str, Any], settings: ModelSettings) -> Backbone:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    config = AutoConfig.from_pretrained(source, **where)
    dropout = reset_config(config, {}, settings)
    tokenizer = _tokenizer(source, where, settings, config.get_text_config())
    packed = _packed(settings)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source,
        config=config,
        use_safetensors=settings.use_safetensors,
        dtype=getattr(torch, settings.dtype.value),
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # such weights are refused below
        **packed,
        **where,
    )
    model, report = loaded
    refuse_misfits(model, report, settings.path)
    backbone = _backbone(model, tokenizer, getattr(config, "_commit_hash", None), settings)
    backbone.dropout = dropout
    return backbone


def _tokenizer(source: str, where: dict[str, Any], settings: ModelSettings, config: Any) -> Any:
    """Load the model's tokenizer. It pads on the left with a masked token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, **where)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise UserError(f"model.path: {settings.path} has no tokenizer: save it beside the model")
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"model.path: the tokenizer of {settings.path} has {len(tokenizer)} words, "
            f"but the model has {config.vocab_size}: they do not belong together"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"model.path: the tokenizer of {settings.path} has no end-of-sequence token: "
            'set "eos_token" in its tokenizer_config.json'
        )
    if tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id:
        raise UserError(
            f"model.path: the tokenizer of {settings.path} ends every text with its end-of-sequence token, so that no "
            "answer follows a question: save it with add_eos_token=False"
        )
    limit = getattr(config, "max_position_embeddings", None) or sys.maxsize
    reset_tokenizer(tokenizer, settings.path, limit, "left", PAD)
    return tokenizer


def _packed(settings: ModelSettings) -> dict[str, Any]:
    """Return the keywords of `from_pretrained` for a model whose linears bitsandbytes quantises.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    if not isinstance(settings.quantization, Quantization):
        return {}
    from importlib.util import find_spec

    if find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.quantization={settings.quantization.value} needs bitsandbytes, which is not installed: "
            "run `pip install bitsandbytes`, or set model.quantization=null"
        )
    import torch
    from transformers import BitsAndBytesConfig

    if settings.quantization is Quantization["8bit"]:
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    four = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=getattr(torch, settings.dtype.value)
    )
    return {"quantization_config": four}


def _backbone(model: Any, tokenizer: Any, revision: str | None, settings: ModelSettings) -> CausalLm:
    known = any(re.fullmatch(CAUSAL_LM.target_modules, name) for name, _ in model.named_modules())
    return CausalLm(
        model=model,
        processor=tokenizer,
        target_modules=CAUSAL_LM.target_modules if known else None,
        head_modules=[],
        task_type="CAUSAL_LM",
        revision=revision,
        quantization=settings.quantization,
    )


def sketch(settings: ModelSettings, num_labels: None = None) -> CausalLm | None:
    """Make the model on the meta device, with its tokenizer, from a folder or the hub's cache.

    Return None if the hub's cache does not have them.

    Raises:
        UserError: as for `load`, except for errors in the weights, which are not read.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    in_folder = settings.path is not None and Path(settings.path).expanduser().is_dir()
    if not in_folder and not is_cached(settings.path or "", settings.revision):
        return None
    with pretrained(settings, LOCAL_HINT) as (source, where):
        config = AutoConfig.from_pretrained(source, **where)
        tokenizer = _tokenizer(source, where, settings, config.get_text_config())
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        model.to(getattr(torch, settings.dtype.value))
        model.tie_weights()
        return _backbone(model, tokenizer, settings.revision, settings)


def outline(settings: ModelSettings, num_labels: None = None) -> tuple[Backbone, str]:
    """Make a hub model on the meta device, without its tokenizer. Also returns the source of its shapes.

    Raises:
        UserError: the hub cannot be reached and the shapes are not known here.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from flexlora.models.random_init import random_init

    assert settings.path is not None
    model: Any
    if trouble_with(settings.path, "model", settings.revision) is not None:
        try:
            model = random_init(settings.name or "", device="meta")
        except ValueError as error:
            raise UserError(f"the shapes of {settings.path} are not known without the hub") from error
        source = "exact shapes, hub not asked"
    else:
        try:
            config = AutoConfig.from_pretrained(settings.path, revision=settings.revision, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the config of {settings.path} from the hub: {one_line(error)}") from error
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        source = "by the hub's config"
    model.to(getattr(torch, settings.dtype.value))
    return _backbone(model, None, settings.revision, settings), source
