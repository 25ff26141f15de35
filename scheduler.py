"""Hands timers over when they are due: `python scheduler.py`. Two may run; one is active."""

from afterhours_service.config import Settings
from afterhours_service.periodic import run_scheduler

if __name__ == "__main__":
    run_scheduler(Settings.from_environ())
