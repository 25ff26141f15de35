"""The API's description, OpenAPI 3.1: what flask-smorest cannot collect from the routes."""

from collections.abc import Collection, Iterator
from typing import Any, cast

from apispec import BasePlugin
from flask import Flask
from flask_smorest import Api
from marshmallow import fields
from werkzeug.routing import Rule

from afterhours_service.web import errors, schemas
from afterhours_service.web.errors import CATALOGUE, AppError

_DESCRIPTION = """\
A member goes live at one place for a while, and then is gone, on time.

Times are ISO 8601 in UTC with milliseconds and `Z`. A success says `"success": true`; a failure `"success": false`, a
sentence in `error`, and a stable `code`. Unknown fields are refused. An unknown address gives `NOT_FOUND`, an unknown
method `METHOD_NOT_ALLOWED`."""

_FAILURE: dict[str, Any] = {
    "type": "object",
    "description": "A failure; `code` says which, and is stable. Optional fields come with some codes only.",
    "required": ["success", "error", "code"],
    "additionalProperties": False,
    "properties": {
        "success": {"type": "boolean", "const": False},
        "error": {"type": "string", "description": "a sentence for people"},
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
        **{name: {"type": "string"} for name in ("detail", "status", "database", "schema", "redis")},
    },
}
_HEADERS = {
    "X-Request-ID": {"description": "the request's ID in the logs", "schema": {"type": "string"}},
    "Retry-After": {"description": "seconds to wait", "schema": {"type": "integer", "minimum": 1}},
    "WWW-Authenticate": {"description": "how to authenticate", "schema": {"type": "string"}},
}


def init_app(app: Flask) -> Api:
    """Return the Api to register the app's blueprints with, so that they are described."""
    app.config.update(API_TITLE="After Hours", API_VERSION="1", OPENAPI_VERSION="3.1.0")
    license_ = {"name": "Apache License 2.0", "identifier": "Apache-2.0"}
    options = {"info": {"description": _DESCRIPTION, "license": license_}, "security": [{"bearer": []}]}
    api = Api(app, spec_kwargs={**options, "extra_plugins": [_Operations(app)]})
    api.DEFAULT_ERROR_RESPONSE_NAME = None  # every failure is named
    api.register_field(schemas.UtcDateTime, "string", "date-time")
    api.ma_plugin.converter.add_attribute_function(_describe_field)
    components = api.spec.components
    components.security_scheme("bearer", {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"})
    components.schema("Failure", _FAILURE)
    for name, header in _HEADERS.items():
        components.header(name, header)
    for code, error in CATALOGUE.items():
        components.example(code, {"summary": error.__doc__, "value": error(**error.example).body})
    return api


def describe(app: Flask) -> dict[str, Any]:
    """Return the description of the app's API."""
    api: Api = app.extensions["flask-smorest"]["apis"][""]["ext_obj"]
    description: dict[str, Any] = api.spec.to_dict()
    # flask-smorest describes the outermost blueprints only.
    parts = [part for part in app.blueprints.values() if isinstance(part, schemas.Blueprint) and part.description]
    return description | {"tags": [{"name": part.name, "description": part.description} for part in parts]}


class _Operations(BasePlugin):
    """Completes each operation with its ID and its failures."""

    def __init__(self, app: Flask) -> None:
        self._app = app

    def operation_helper(
        self, path: str | None = None, operations: dict[str, Any] | None = None, **context: Any
    ) -> None:
        del path  # the rule has it, too
        rule: Rule = context["rule"]
        for operation in (operations or {}).values():
            operation["operationId"] = schemas.camel_case(rule.endpoint.rpartition(".")[2])
            responses = {**operation["responses"], **_responses(set(self._failures(rule, operation)))}
            operation["responses"] = dict(sorted(responses.items()))

    def _failures(self, rule: Rule, operation: dict[str, Any]) -> Iterator[type[AppError]]:
        """Yield the failures of a route: its own, its blueprint's, and those that follow from its arguments."""
        yield from (errors.BadRequest, errors.InternalError)
        yield from getattr(self._app.view_functions[rule.endpoint], "failures", ())
        outermost = self._app.blueprints[rule.endpoint.partition(".")[0]]
        yield from cast("schemas.Blueprint", outermost).failures_of(rule.endpoint)
        if rule.arguments:
            yield errors.NotFound
        if "application/json" in operation.get("requestBody", {}).get("content", {}):
            yield from (errors.ValidationFailed, errors.PayloadTooLarge)
        elif operation.get("parameters"):
            yield errors.ValidationFailed


def _responses(failures: Collection[type[AppError]]) -> dict[int, Any]:
    """Return the failures by status. apispec makes references of the components' names."""
    by_status: dict[int, list[type[AppError]]] = {}
    order = list(CATALOGUE)
    for error in sorted(failures, key=lambda error: order.index(error.code)):
        by_status.setdefault(int(error.status), []).append(error)
    return {status: _response(group) for status, group in by_status.items()}


def _response(failures: list[type[AppError]]) -> dict[str, Any]:
    codes = [error.code for error in failures]
    headers = {name for error in failures for name in error.headers}
    if errors.RateLimited in failures:  # its Retry-After is known only when it happens
        headers.add("Retry-After")
    return {
        "description": ", ".join(f"`{code}`" for code in codes),
        "headers": {name: name for name in ("X-Request-ID", *sorted(headers))},
        "content": {"application/json": {"schema": "Failure", "examples": {code: code for code in codes}}},
    }


def _describe_field(_converter: Any, field: fields.Field[Any], **_: Any) -> dict[str, Any]:
    """Return what apispec does not know of a field."""
    if isinstance(field, fields.Constant):
        return {"type": "boolean", "const": field.constant}
    if isinstance(field, schemas.SafeString) and not field.validators:
        return {"pattern": field.pattern}
    return {}
