"""The after-hours blueprints: their prefix, the gate before every route, the features' routes; rights without it."""

from afterhours_service import access, errors, limits
from afterhours_service.discovery.routes import blueprint as discovery
from afterhours_service.members.routes import blueprint as rights
from afterhours_service.preferences.routes import blueprint as preferences
from afterhours_service.profiles.routes import blueprint as profiles
from afterhours_service.schemas import Blueprint
from afterhours_service.sessions.routes import blueprint as sessions

after_hours = Blueprint(
    "after_hours",
    __name__,
    url_prefix="/api/after-hours",
    failures=(*access.FAILURES, errors.RateLimited, errors.ServiceUnavailable),
)
after_hours.before_request(access.gate)
after_hours.register_blueprint(sessions)
after_hours.register_blueprint(profiles)
after_hours.register_blueprint(preferences)
after_hours.register_blueprint(discovery)
limits.apply_to(after_hours)

# What members may do about themselves, whether or not they are premium, verified and consenting.
members = Blueprint(
    "members",
    __name__,
    url_prefix="/api/after-hours",
    failures=(*access.TOKEN_FAILURES, errors.RateLimited, errors.ServiceUnavailable),
)
members.before_request(access.authenticate)
members.register_blueprint(rights)
limits.apply_to(members)
