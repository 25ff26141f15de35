"""The API's description, OpenAPI 3.1: what the schemas do not tell by themselves, and the page to try it at."""

import json
from collections.abc import Iterable, Iterator
from importlib.resources import files
from itertools import groupby
from typing import Any

from apispec import APISpec, BasePlugin
from flask import Blueprint, Flask, Response, current_app, send_from_directory
from marshmallow import fields
from werkzeug.routing import Rule

from afterhours_service.web import errors, schemas
from afterhours_service.web.api import api
from afterhours_service.web.errors import CATALOGUE, AppError

# What any request may meet; but at no address, and at no method, there is no operation to tell of it.
ANYWHERE = (errors.BadRequest, errors.InternalError)

_DESCRIPTION = """\
A member goes live at one place for a while, and then is gone, on time.

Times are ISO 8601 in UTC with milliseconds and `Z`. A success says `"success": true`; a failure `"success": false`, a
sentence in `error`, and a stable `code`. Unknown fields are refused. At no address there is `NOT_FOUND`, at no method
`METHOD_NOT_ALLOWED`."""

_FAILURE: dict[str, Any] = {
    "type": "object",
    "description": "Something went wrong; `code` says what, and is stable. The rest comes with some codes only.",
    "required": ["success", "error", "code"],
    "additionalProperties": False,
    "properties": {
        "success": {"type": "boolean", "const": False},
        "error": {"type": "string", "description": "a sentence, for people"},
        "code": {"type": "string", "enum": sorted(CATALOGUE)},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "message"],
                "additionalProperties": False,
                "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
            },
        },
        "upgrade": {"type": "boolean"},
        "requiresVerification": {"type": "boolean"},
        "requiresConsent": {"type": "boolean"},
        "session": {"$ref": "#/components/schemas/Active"},
        "detail": {"type": "string"},
        **{name: {"type": "string"} for name in ("status", "database", "schema", "redis")},
    },
}

_HEADERS = {
    "X-Request-ID": {"description": "the request's id in our logs", "schema": {"type": "string"}},
    "Retry-After": {"description": "seconds to wait", "schema": {"type": "integer", "minimum": 1}},
    "WWW-Authenticate": {"description": "how to authenticate", "schema": {"type": "string"}},
}

# The initializer is a file of its own, as the page's policy wants it.
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
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ASSETS = str(files("flask_swagger_ui") / "dist")

page = Blueprint("docs", __name__)


def init_app(app: Flask) -> None:
    """Let the API be described; before its blueprints are registered."""
    options = {
        "info": {"description": _DESCRIPTION, "license": {"name": "Apache License 2.0", "identifier": "Apache-2.0"}},
        "security": [{"bearer": []}],
    }
    api.init_app(app, spec_kwargs={**options, "extra_plugins": [_Operations(app)]})
    app.extensions["after_hours_openapi"] = spec = api.spec
    api.ma_plugin.map_to_openapi_type(schemas.UtcDateTime, "string", "date-time")
    api.ma_plugin.converter.add_attribute_function(_attributes)
    spec.components.security_scheme("bearer", {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"})
    spec.components.schema("Failure", _FAILURE)
    for name, header in _HEADERS.items():
        spec.components.header(name, header)
    for code, error in CATALOGUE.items():
        spec.components.example(code, {"summary": error.__doc__, "value": error(**error.example).body})


def describe(app: Flask) -> dict[str, Any]:
    """Return the description of the app's API."""
    spec: APISpec = app.extensions["after_hours_openapi"]
    description = spec.to_dict()
    operations = [part for path in description["paths"].values() for part in path.values() if isinstance(part, dict)]
    used = {tag for operation in operations for tag in operation["tags"]}
    description["tags"] = [
        {"name": part.name, "description": part.description}
        for part in app.blueprints.values()
        if isinstance(part, schemas.Blueprint) and part.name in used
    ]
    return description


@page.get("/openapi.json")
def get_description() -> Response:
    """Return the description."""
    return Response(json.dumps(describe(current_app)), mimetype="application/json")  # jsonify would sort it


@page.get("/docs")
def get_page() -> Response:
    """Return the page to read and try the API at."""
    return Response(_PAGE, mimetype="text/html", headers={"Content-Security-Policy": _PAGE_POLICY})


@page.get("/docs/initializer.js")
def get_initializer() -> Response:
    """Return the page's own script."""
    return Response(_INITIALIZER, mimetype="text/javascript")


@page.get("/docs/<name>")
def get_asset(name: str) -> Response:
    """Return a part of Swagger UI."""
    response = send_from_directory(_ASSETS, name)
    response.headers["Cache-Control"] = "public, max-age=3600"
    return response


class _Operations(BasePlugin):
    """Completes each operation: id, tag, failures, headers, and that an answer has all of its fields."""

    def __init__(self, app: Flask) -> None:
        self._app = app

    def init_spec(self, spec: APISpec) -> None:
        self._spec = spec

    def operation_helper(
        self, path: str | None = None, operations: dict[str, Any] | None = None, **context: Any
    ) -> None:
        del path  # the rule says more
        rule: Rule = context["rule"]
        names = rule.endpoint.split(".")
        first, *rest = names[-1].split("_")
        failures = set(_failures(self._app, rule.endpoint))
        if rule.arguments:  # what is no such argument is no such address
            failures.add(errors.NotFound)
        for operation in (operations or {}).values():
            operation["operationId"] = first + "".join(word.title() for word in rest)
            operation["tags"] = [names[-2]]
            body = operation.get("requestBody", {}).get("content", {})
            refusals = set()
            if "application/json" in body:
                refusals = {errors.ValidationFailed, errors.PayloadTooLarge}
            elif operation.get("parameters"):
                refusals = {errors.ValidationFailed}
            successes = {status: answer for status, answer in operation["responses"].items() if str(status) < "3"}
            for answer in successes.values():
                answer.setdefault("headers", {})["X-Request-ID"] = _ref("headers", "X-Request-ID")
                self._require_all(answer)
            operation["responses"] = successes | _answers(failures | refusals)

    def _require_all(self, part: Any) -> None:
        """Mark every field of an answer as required: none is ever left out."""
        if isinstance(part, dict):
            if reference := part.get("$ref"):
                folder, name = reference.split("/")[-2:]
                if folder == "schemas":
                    schema = self._spec.components.schemas[name]
                    schema["required"] = list(schema["properties"])
                    part = schema
            for value in part.values():
                self._require_all(value)
        elif isinstance(part, list):
            for value in part:
                self._require_all(value)


def _failures(app: Flask, endpoint: str) -> Iterator[type[AppError]]:
    """Yield what an operation may answer: its own failures, those of its blueprints, those of any request."""
    yield from getattr(app.view_functions[endpoint], "failures", ())
    name = endpoint
    while name := name.rpartition(".")[0]:
        blueprint = app.blueprints[name]
        if isinstance(blueprint, schemas.Blueprint):
            yield from blueprint.failures_of(endpoint)
    yield from ANYWHERE


def _answers(failures: Iterable[type[AppError]]) -> dict[str, Any]:
    order = list(CATALOGUE.values())
    known = {CATALOGUE[error.code] for error in failures}  # two may share a code, and tell it in other words
    by_status = sorted(known, key=lambda error: (error.status, order.index(error)))
    return {str(int(status)): _answer(list(group)) for status, group in groupby(by_status, lambda error: error.status)}


def _answer(failures: list[type[AppError]]) -> dict[str, Any]:
    headers = {name for error in failures for name in error.headers}
    if errors.RateLimited in failures:  # when to try again is known then only
        headers.add("Retry-After")
    return {
        "description": ", ".join(f"`{error.code}`" for error in failures),
        "headers": {name: _ref("headers", name) for name in ("X-Request-ID", *sorted(headers))},
        "content": {
            "application/json": {
                "schema": _ref("schemas", "Failure"),
                "examples": {error.code: _ref("examples", error.code) for error in failures},
            }
        },
    }


def _ref(folder: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{folder}/{name}"}


def _attributes(_converter: Any, field: fields.Field[Any], **_: Any) -> dict[str, Any]:
    """Return what apispec does not know of our fields."""
    if isinstance(field, fields.Constant):
        return {"type": "boolean", "const": field.constant}
    if isinstance(field, schemas.SafeString) and not field.validators:
        return {"pattern": field.pattern}
    return {}
