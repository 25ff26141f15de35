"""Runs the live gateway in a checkout: `python live.py`. An installed package has `after-hours-live`."""

from afterhours_service.processes import live

if __name__ == "__main__":
    live()
