"""Hands timers over when they are due: `python scheduler.py`. Two may run; one is active."""

import os
import time

os.environ["TZ"] = "UTC"  # rq-scheduler reads cron lines in the process's time zone; so before anything reads the clock
time.tzset()

from afterhours_service.config import Settings  # noqa: E402
from afterhours_service.periodic import run_scheduler  # noqa: E402

if __name__ == "__main__":
    run_scheduler(Settings.from_environ())
