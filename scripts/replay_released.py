"""Replay a training that the released code ran: see `python scripts/replay_released.py --help`."""

import sys

from flexlora.testing.replay_released import main

if __name__ == "__main__":
    sys.exit(main())
