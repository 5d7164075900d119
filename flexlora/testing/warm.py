"""What the server of `flexlora.testing.commands` does before it forks: every process would do it again.

The import of this module does the work, because a fork server only imports.
"""

import gc
import importlib

# No garbage collection while modules are imported: each would look at all objects of torch.
gc.disable()

# The modules that every run imports. The imports take five seconds of CPU time.
IMPORTED = [
    "accelerate",
    "flexlora.cli.doctor",
    "flexlora.cli.report",
    "flexlora.cli.run",
    "flexlora.methods.adalora",
    "flexlora.methods.peft",
    "flexlora.methods.flexlora_released",
    "flexlora.methods.mask",
    "flexlora.models.sequence_classifier",
    "flexlora.tasks.glue",
    "flexlora.training.job",
    "flexlora.training.loop",
    "flexlora.training.memory",
    "peft",
    "safetensors.torch",
    "scipy.stats",
    "sklearn.metrics",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
    "transformers.models.deberta_v2.modeling_deberta_v2",
]
for name in IMPORTED:
    importlib.import_module(name)

# Every load of a model needs this table, which transformers compiles from a thousand regular expressions.
importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("bert")

# A collection in a forked process would otherwise write to, and so copy, the memory of all objects.
gc.freeze()
gc.enable()
