"""A small world: sixty-four things, each with one quality."""

QUALITIES: dict[str, tuple[str, ...]] = {
    "hot": ("fire", "oven", "lava", "ember", "stove", "steam", "candle", "torch"),
    "cold": ("ice", "snow", "hail", "frost", "glacier", "sleet", "iceberg", "fridge"),
    "heavy": ("anvil", "boulder", "truck", "anchor", "piano", "brick", "safe", "tractor"),
    "sweet": ("honey", "sugar", "candy", "syrup", "jam", "cake", "fudge", "toffee"),
    "sour": ("lemon", "vinegar", "pickle", "lime", "rhubarb", "cranberry", "sorrel", "grapefruit"),
    "sharp": ("knife", "needle", "razor", "thorn", "sword", "axe", "chisel", "blade"),
    "loud": ("siren", "drum", "thunder", "horn", "alarm", "trumpet", "cannon", "whistle"),
    "soft": ("pillow", "wool", "cotton", "feather", "velvet", "moss", "fleece", "silk"),
}

ASKED_IN_TRAINING = 5
"""Number of things of each quality in the training questions. The remaining ones occur only in the test questions."""

PEOPLE = (
    *("anna", "ben", "carla", "david", "emma", "frank", "grace", "henry", "iris", "jack", "kim", "leo"),
    *("mia", "noah", "olga", "paul", "quinn", "rosa", "sam", "tina"),
)
