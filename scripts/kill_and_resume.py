"""Kill trainings, resume them and compare the results: see `python scripts/kill_and_resume.py --help`."""

import sys

from flexlora.testing.kill_and_resume import main

if __name__ == "__main__":
    sys.exit(main())
