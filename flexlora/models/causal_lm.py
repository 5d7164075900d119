"""Language models for `AutoModelForCausalLM`, from the hub or from a folder."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexlora.architectures import CAUSAL_LM
from flexlora.errors import UserError, one_line
from flexlora.hub import is_cached, trouble_with
from flexlora.models import Backbone
from flexlora.models.pretrained import pretrained
from flexlora.settings import ModelSettings, Quantization

if TYPE_CHECKING:
    import torch

log = logging.getLogger("flexlora")

LOCAL_HINT = "model=local model.path=DIR takes a language model from a folder"

# The protocol's: token 0, masked wherever it pads (of LLaMA <unk>; LLaMA3 has none to spare and 0 is a "!").
PAD = 0


# Bytes of a packed weight: of 4 bits there is a scale, a float32, to every 64.
PACKED = {Quantization["8bit"]: 1.0, Quantization["4bit"]: 0.5 + 4 / 64}


@dataclass
class CausalLm(Backbone):
    """A language model brings its own head, which stays as it is."""

    quantization: Quantization | None = None

    def weight_bytes(self) -> tuple[int, int]:
        """Bytes of the weights as they are here, and as they will be where bitsandbytes packs the linears."""
        from torch import nn

        whole, packed = super().weight_bytes()
        if self.quantization in PACKED:
            for name, module in self.model.named_modules():
                if isinstance(module, nn.Linear) and not name.endswith("lm_head"):
                    packed -= module.weight.numel() * module.weight.element_size()
                    packed += round(module.weight.numel() * PACKED[self.quantization])
        return whole, packed

    def logits(self, model: Any, batch: "Mapping[str, torch.Tensor]") -> "torch.Tensor":
        """Of all tokens while training; of an evaluation's batch only of the last ones, as generating needs them."""
        last = {} if model.training else {"logits_to_keep": 1}
        logits: torch.Tensor = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False, **last
        ).logits
        return logits


def load(settings: ModelSettings, num_labels: None = None) -> Backbone:
    """Model and tokenizer. Code that comes with a checkpoint is never run.

    Raises:
        UserError: nothing at `model.path`, no such model in reach, one without a language model's head or some of its
            weights, or a tokenizer that cannot end a text.
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
    tokenizer = _tokenizer(source, where, settings, config.get_text_config().vocab_size)
    packed = _packed(settings)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source,
        config=config,
        use_safetensors=settings.use_safetensors,
        dtype=getattr(torch, settings.dtype.value),
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # none is taken: they are told of below
        **packed,
        **where,
    )
    model, report = loaded
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(f"model.path: {settings.path} lacks {len(missing)} of its weights, such as {missing[0]}")
    for name, theirs, ours in report["mismatched_keys"]:
        raise UserError(
            f"model.path: {settings.path} contradicts itself: {name} is {list(theirs)}, by config.json {list(ours)}"
        )
    return _backbone(model, tokenizer, getattr(config, "_commit_hash", None), settings)


def _tokenizer(source: str, where: dict[str, Any], settings: ModelSettings, vocabulary: int) -> Any:
    """The model's own, padding on the left with a token that is masked."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, **where)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise UserError(f"model.path: {settings.path} has no tokenizer: save it beside the model")
    if len(tokenizer) > vocabulary:
        raise UserError(
            f"model.path: the tokenizer of {settings.path} has {len(tokenizer)} words, the model {vocabulary}: "
            "they do not belong together"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"model.path: the tokenizer of {settings.path} has no end-of-sequence token, which ends every text: "
            'name one in tokenizer_config.json ("eos_token")'
        )
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = PAD
    return tokenizer


def _packed(settings: ModelSettings) -> dict[str, Any]:
    """Keywords of `from_pretrained` for a base whose linears bitsandbytes packs.

    Raises:
        UserError: it is not installed.
    """
    if not isinstance(settings.quantization, Quantization):
        return {}
    from importlib.util import find_spec

    if find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.quantization={settings.quantization.value} needs bitsandbytes, which is not installed: "
            "pip install bitsandbytes, or model.quantization=null"
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
    """Model on the meta device and tokenizer, by what is in the folder or the hub's cache; None where it is not.

    Raises:
        UserError: as `load`, whose weights it leaves out.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    in_folder = settings.path is not None and Path(settings.path).expanduser().is_dir()
    if not in_folder and not is_cached(settings.path or "", settings.revision):
        return None
    with pretrained(settings, LOCAL_HINT) as (source, where):
        config = AutoConfig.from_pretrained(source, **where)
        tokenizer = _tokenizer(source, where, settings, config.get_text_config().vocab_size)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        model.to(getattr(torch, settings.dtype.value))
        model.tie_weights()
        return _backbone(model, tokenizer, settings.revision, settings)


def outline(settings: ModelSettings, num_labels: None = None) -> tuple[Backbone, str]:
    """A hub model on the meta device, without a tokenizer, and where its shapes are from.

    Raises:
        UserError: neither the hub answers, nor are its shapes known here.
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
