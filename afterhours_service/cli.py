"""The `flask after-hours` commands."""

from flask.cli import AppGroup

from afterhours_service.cleanup.cli import cleanup
from afterhours_service.sessions.cli import sessions

after_hours = AppGroup("after-hours", help="Look after the sessions.")
after_hours.add_command(cleanup)
after_hours.add_command(sessions)
