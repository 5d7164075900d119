"""Which modules of an encoder are adapted and which train whole, by its architecture.

The linears are the paper's six a layer (query, key, value, attention output, intermediate, output), anchored to the
encoder's layers so that a pooler's or a classifier's `dense` is never among them. The head is what a pretrained
checkpoint leaves random, or what the paper trains beside the adapter: pooler and classifier.
"""

from dataclasses import dataclass

_FEED_FORWARD = r"attention\.output\.dense|intermediate\.dense|output\.dense"


@dataclass(frozen=True)
class Architecture:
    """`target_modules` is matched against a module's whole name; `head_modules` are its last names."""

    target_modules: str
    head_modules: tuple[str, ...]


ARCHITECTURES = {
    "bert": Architecture(
        rf".*\.encoder\.layer\.\d+\.(attention\.self\.(query|key|value)|{_FEED_FORWARD})", ("pooler", "classifier")
    ),
    "roberta": Architecture(
        rf".*\.encoder\.layer\.\d+\.(attention\.self\.(query|key|value)|{_FEED_FORWARD})", ("classifier",)
    ),
    "electra": Architecture(
        rf".*\.encoder\.layer\.\d+\.(attention\.self\.(query|key|value)|{_FEED_FORWARD})", ("classifier",)
    ),
    # DeBERTa v1 holds query, key and value in one linear.
    "deberta": Architecture(
        rf".*\.encoder\.layer\.\d+\.(attention\.self\.in_proj|{_FEED_FORWARD})", ("pooler", "classifier")
    ),
    "deberta-v2": Architecture(
        rf".*\.encoder\.layer\.\d+\.(attention\.self\.(query|key|value)_proj|{_FEED_FORWARD})", ("pooler", "classifier")
    ),
    "distilbert": Architecture(
        r".*\.transformer\.layer\.\d+\.(attention\.(q|k|v|out)_lin|ffn\.lin[12])", ("pre_classifier", "classifier")
    ),
}
