"""The API's description, and Swagger UI on a page without inline scripts, which its content policy forbids."""

import json
from importlib.resources import files

from flask import Blueprint, Response, current_app, send_from_directory

from afterhours_service.web.openapi import describe

_INITIALIZER = """\
window.ui = SwaggerUIBundle({
  url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, persistAuthorization: true, validatorUrl: null,
});
"""
_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>After Hours: the API</title>
<link rel="icon" type="image/png" href="/docs/favicon-32x32.png">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/initializer.js"></script>
</body>
</html>
"""
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ASSETS = str(files("flask_swagger_ui") / "dist")

blueprint = Blueprint("docs", __name__)


@blueprint.get("/openapi.json")
def get_description() -> Response:
    """Return the description."""
    return Response(json.dumps(describe(current_app)), mimetype="application/json")  # jsonify would sort it


@blueprint.get("/docs")
def get_page() -> Response:
    """Return the page."""
    return Response(_PAGE, mimetype="text/html", headers={"Content-Security-Policy": _POLICY})


@blueprint.get("/docs/initializer.js")
def get_initializer() -> Response:
    """Return the script that starts Swagger UI."""
    return Response(_INITIALIZER, mimetype="text/javascript")


@blueprint.get("/docs/<name>")
def get_asset(name: str) -> Response:
    """Return a file of Swagger UI."""
    return send_from_directory(_ASSETS, name, max_age=3600)
