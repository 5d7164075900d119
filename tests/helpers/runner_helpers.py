"""What tests of the command line share."""

import subprocess


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    """The command's only line on stderr."""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("flexlora-run: "), result.stderr
    return lines[0].removeprefix("flexlora-run: ")
