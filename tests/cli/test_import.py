"""What `import flexlora` does, each in a fresh interpreter: the order of imports is what is tested."""

import subprocess
import sys

import pytest
from marks import slow_but


def python(code: str) -> str:
    """What the code prints. Without garbage collection and cleaning up, it takes a quarter less time."""
    whole = f"import gc; gc.disable()\n{code}\nimport os, sys; sys.stdout.flush(); os._exit(0)"
    return subprocess.run([sys.executable, "-c", whole], check=True, capture_output=True, text=True).stdout.strip()


def test_importing_does_no_work() -> None:
    assert python("import sys, flexlora; print(sorted({'torch', 'peft', 'transformers'} & sys.modules.keys()))") == "[]"


# transformers itself imports timm for these.
WITH_TIMM = [
    "import flexlora, transformers; from transformers import Trainer",
    "import flexlora, accelerate, datasets, transformers; from transformers import AutoModel",
]


@pytest.mark.parametrize(
    "imports",
    slow_but(
        {"import peft; import flexlora", "import flexlora.sharing"},
        [
            "import flexlora; import peft",
            "import peft; import flexlora",
            # transformers asks so whether PEFT is installed, and nothing is imported by it.
            "import importlib.util, flexlora; importlib.util.find_spec('peft'); importlib.util.find_spec('peft')",
            "import flexlora.tuner",
            "import flexlora.sharing",
            "import flexlora.baselines",
            *WITH_TIMM,
        ],
    ),
)
def test_peft_knows_our_methods_whatever_came_first_and_timm_is_not_imported(imports: str) -> None:
    code = f"import sys; {imports}; from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as m"
    told = python(f"{code}; print(m['FLEXLORA'].__name__, m['HOULSBY'].__name__, 'timm' in sys.modules)")
    assert told in [
        f"FlexLoraConfig HoulsbyConfig {timm}" for timm in ([True, False] if imports in WITH_TIMM else [False])
    ]


@pytest.mark.slow
def test_a_submodule_of_peft_is_enough_and_the_public_names_are_there() -> None:
    code = "import flexlora; from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as m; print(m['FLEXLORA'].__name__)"
    names = "print(all(getattr(flexlora, n) for n in flexlora.__all__))"
    types = "import flexlora.tuner; print('FLEXLORA' in __import__('peft').PeftType.__members__)"
    assert python(f"{code}\n{names}\n{types}").split() == ["FlexLoraModel", "True", "True"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    code = "import flexlora\ntry: flexlora.FlexLora\nexcept AttributeError as error: print(error)"
    assert python(code) == "module 'flexlora' has no attribute 'FlexLora'"
