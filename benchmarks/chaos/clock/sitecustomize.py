"""Shifts a Python process's clock by CHAOS_CLOCK_SHIFT seconds: Python runs this first where it is on its path."""

import os
import time

import time_machine

time_machine.travel(time.time() + float(os.environ["CHAOS_CLOCK_SHIFT"]), tick=True).start()
