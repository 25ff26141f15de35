"""Security and CORS headers of every response."""

from flask import Flask, Response, request

from afterhours_service.config import Settings

# From OWASP's REST security cheat sheet, "Security headers". A route may set its own.
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
HSTS = "max-age=31536000"  # a year; browsers ignore it without TLS

_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, X-Request-ID",
    "Access-Control-Max-Age": "600",  # seconds
}


def init_app(app: Flask, settings: Settings) -> None:
    """Set the headers of every response, and answer preflight requests from allowed origins before the gate."""
    headers = HEADERS | ({"Strict-Transport-Security": HSTS} if settings.production else {})

    @app.before_request
    def preflight() -> Response | None:
        if _is_preflight() and request.headers.get("Origin") in settings.cors_origins:
            return Response(status=204)
        return None

    @app.after_request
    def finish(response: Response) -> Response:
        for name, value in headers.items():
            response.headers.setdefault(name, value)
        if settings.cors_origins:
            response.vary.add("Origin")
        origin = request.headers.get("Origin")
        if origin in settings.cors_origins:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = "X-Request-ID, Retry-After"
            if _is_preflight():
                response.headers.update(_PREFLIGHT)
        return response


def _is_preflight() -> bool:
    return request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
