"""The answer to a request that came while too many others waited: 503, before anything is asked of PostgreSQL."""

from flask import Flask, request

from afterhours_service.web.errors import ServiceUnavailable

OVERLOADED = "after_hours.overloaded"  # set by the server, in the WSGI environment


def init_app(app: Flask) -> None:
    """Refuse the requests that the server has marked."""

    @app.before_request
    def refuse() -> None:
        if request.environ.get(OVERLOADED):
            raise ServiceUnavailable
