"""Runs the API in a checkout: `python api.py`. An installed package has `after-hours-api`."""

from afterhours_service.processes import api

if __name__ == "__main__":
    api()
