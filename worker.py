"""Runs a worker in a checkout: `python worker.py [QUEUE…]`. An installed package has `after-hours-worker`."""

from afterhours_service.processes import worker

if __name__ == "__main__":
    worker()
