"""The after-hours blueprint: its prefix, the features' routes, and the limits and the gate before each of them."""

from flask import request

from afterhours_service.config import current_settings
from afterhours_service.discovery.routes import blueprint as discovery
from afterhours_service.matching.routes import blueprint as matching
from afterhours_service.preferences.routes import blueprint as preferences
from afterhours_service.profiles.routes import blueprint as profiles
from afterhours_service.rights.routes import blueprint as rights
from afterhours_service.sessions.routes import blueprint as sessions
from afterhours_service.web import errors, gate, limits
from afterhours_service.web.schemas import Blueprint

# Routes for leaving: a valid token is enough, and each has a rate limit of its own, which other requests cannot use
# up. All other routes are behind the gate and share one limit per member.
LEAVING = {
    "after_hours.sessions.end_session": "120 per minute",
    "after_hours.profile.delete_photo": "120 per minute",
    "after_hours.rights.get_consent": "120 per minute",
    "after_hours.rights.put_consent": "120 per minute",
    "after_hours.rights.export_me": "10 per minute",
    "after_hours.rights.erase_me": "20 per minute",
}
# Routes whose own query includes the gate's.
ASKING_THEMSELVES = {"after_hours.sessions.get_session", "after_hours.sessions.start_session"}


def failures_of(endpoint: str) -> tuple[type[errors.AppError], ...]:
    """Return the failures that a route may answer before its view is called."""
    checks = gate.TOKEN_FAILURES if endpoint in LEAVING else gate.FAILURES
    return (*checks, errors.RateLimited, errors.ServiceUnavailable)


after_hours = Blueprint("after_hours", __name__, url_prefix="/api/after-hours", failures_of=failures_of)
after_hours.register_blueprint(sessions)
after_hours.register_blueprint(profiles)
after_hours.register_blueprint(preferences)
after_hours.register_blueprint(discovery)
after_hours.register_blueprint(matching)
after_hours.register_blueprint(rights)


@after_hours.before_request
def check() -> None:
    """Count the request against its limit. Authenticate requests for leaving; send all others through the gate."""
    if request.endpoint in LEAVING:
        limits.count(LEAVING[request.endpoint])
        gate.authenticate()
        return
    limits.count(current_settings().ratelimit_default, scope="member")
    if request.endpoint in ASKING_THEMSELVES and request.method != "OPTIONS":  # which Flask answers without the view
        gate.leave_to_the_view()
    else:
        gate.admit()


after_hours.after_request(gate.verify_was_admitted)
