"""What `import flexlora` does, each in a fresh interpreter: the order of imports is what is tested."""

import subprocess
import sys

import pytest
from marks import slow_but


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_importing_does_no_work() -> None:
    assert python("import sys, flexlora; print(sorted({'torch', 'peft', 'transformers'} & sys.modules.keys()))") == "[]"


@pytest.mark.parametrize(
    "imports",
    slow_but(
        {"import peft; import flexlora"},
        [
            "import flexlora; import peft",
            "import peft; import flexlora",
            # transformers asks so whether PEFT is installed, and nothing is imported by it.
            "import importlib.util, flexlora; importlib.util.find_spec('peft'); importlib.util.find_spec('peft')",
            "import flexlora, transformers; from transformers import Trainer",
            "import flexlora, accelerate, datasets, transformers; from transformers import AutoModel",
        ],
    ),
)
def test_peft_knows_the_method_whatever_came_first(imports: str) -> None:
    code = f"{imports}; from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as m; print(m['FLEXLORA'].__name__)"
    assert python(code) == "FlexLoraConfig"


@pytest.mark.parametrize(
    "imports",
    slow_but(
        {"import flexlora", "import flexlora.sharing"},
        ["import flexlora", "import flexlora.tuner", "import flexlora.sharing", "import flexlora.baselines"],
    ),
)
def test_peft_knows_the_baselines_without_timm(imports: str) -> None:
    code = f"import sys; {imports}; from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as m"
    assert python(f"{code}; print(m['HOULSBY'].__name__, 'timm' in sys.modules)") == "HoulsbyConfig False"


@pytest.mark.slow
def test_a_submodule_of_peft_is_enough() -> None:
    code = "import flexlora; from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as m; print(m['FLEXLORA'].__name__)"
    assert python(code) == "FlexLoraModel"


@pytest.mark.slow
def test_the_public_names_are_there() -> None:
    assert python("import flexlora; print(all(getattr(flexlora, n) for n in flexlora.__all__))") == "True"
    assert python("import flexlora.tuner as t; print('FLEXLORA' in __import__('peft').PeftType.__members__)") == "True"


def test_an_unknown_name_is_an_attribute_error() -> None:
    code = "import flexlora\ntry: flexlora.FlexLora\nexcept AttributeError as error: print(error)"
    assert python(code) == "module 'flexlora' has no attribute 'FlexLora'"
