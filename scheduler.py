"""Runs a scheduler in a checkout: `python scheduler.py`. An installed package has `after-hours-scheduler`."""

from afterhours_service.processes import scheduler

if __name__ == "__main__":
    scheduler()
