"""Measure how long checking HumanEval's canonical solutions takes: seconds, and CPU seconds of each program.

.venv/bin/python scripts/bench_code_execution.py HumanEval.jsonl.gz [--times 10] [--workers N]
"""

import argparse
import os
import resource
import time
from pathlib import Path

from flexlora.tasks.code_execution import isolation, run_programs
from flexlora.tasks.humaneval import read_problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="HumanEval.jsonl.gz")
    parser.add_argument("--times", type=int, default=10, help="how often each solution runs")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="programs at the same time")
    given = parser.parse_args()
    problems = read_problems(given.file)
    programs = [problem.program(problem.output) for problem in problems] * given.times
    print(isolation().value)
    spent, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    outcomes = run_programs(programs, timeout=20, workers=given.workers)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - spent.ru_utime - spent.ru_stime
    passed = sum(outcome.passed for outcome in outcomes)
    print(
        f"{len(problems)} problems x {given.times}: {passed} of {len(programs)} pass, {seconds:.1f} s with "
        f"{given.workers} workers, {1000 * cpu / len(programs):.0f} ms of CPU each"
    )


if __name__ == "__main__":
    main()
