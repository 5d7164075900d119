"""Run PEFT's own common tests, and ours of what the tuners need from PEFT, with another version of PEFT.

    python scripts/try_peft.py 0.22.0            # the next minor version
    python scripts/try_peft.py 0.21.2 --all      # also language models and encoders

pip puts that version in a temporary folder. The environment does not change.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = ["tests/tuner/test_peft_suite.py", "tests/tuner/test_peft_contract.py"]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("version", help="the version of PEFT, such as 0.22.0")
    parser.add_argument("--all", action="store_true", help="also run the tests on language models and encoders")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        target = ["install", "--quiet", "--no-deps", "--target", folder, f"peft=={given.version}"]
        if subprocess.run([sys.executable, "-m", "pip", *target], check=False).returncode != 0:
            print(f"try_peft.py: pip cannot install peft=={given.version}: see its message above.", file=sys.stderr)
            return 2
        paths = [folder, str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        variables = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        if given.all:
            variables["FLEXLORA_PEFT_SUITE"] = "all"
        command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *TESTS]
        return subprocess.run(command, cwd=ROOT, env=variables, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
