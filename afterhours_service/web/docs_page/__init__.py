"""The API's description, and Swagger UI on a page without inline scripts, which its content policy forbids."""

import json
from importlib.resources import files
from pathlib import Path

from flask import Blueprint, Response, current_app, send_from_directory

from afterhours_service.web.openapi import describe

_HERE = Path(__file__).parent
_ASSETS = str(files("flask_swagger_ui") / "dist")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

blueprint = Blueprint("docs", __name__)


@blueprint.get("/openapi.json")
def get_description() -> Response:
    """Return the description."""
    return Response(json.dumps(describe(current_app)), mimetype="application/json")  # jsonify would sort it


@blueprint.get("/docs")
def get_page() -> Response:
    """Return the page."""
    response = Response((_HERE / "index.html").read_text(), mimetype="text/html")
    response.headers["Content-Security-Policy"] = _POLICY
    return response


@blueprint.get("/docs/<name>")
def get_asset(name: str) -> Response:
    """Return a file of Swagger UI, or the script that starts it."""
    return send_from_directory(_HERE if name == "initializer.js" else _ASSETS, name, max_age=3600)
