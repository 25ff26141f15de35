"""Works off timers and the nightly cleanup: `python worker.py [QUEUE…]`."""

import sys

from afterhours_service import create_app
from afterhours_service.queue import QUEUES, run_worker
from afterhours_service.timers import warn_of_neighbours

if __name__ == "__main__":
    run_worker(create_app(), sys.argv[1:] or QUEUES, at_start=warn_of_neighbours)
