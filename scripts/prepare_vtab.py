"""Download, unpack and check VTAB-1K: see `python scripts/prepare_vtab.py --help`."""

import sys

from flexlora.cli.prepare_vtab import main

if __name__ == "__main__":
    sys.exit(main())
