"""What all schemas and routes share: the parser, the blueprint, camelCase names, the envelope, strict fields."""

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, ClassVar, NoReturn, TypeVar, cast

import marshmallow as ma
from flask import Request
from flask_smorest import Blueprint as SmorestBlueprint
from marshmallow import fields
from webargs.flaskparser import FlaskParser
from werkzeug.exceptions import HTTPException

from afterhours_service.text import is_storable, isoformat
from afterhours_service.web import gate
from afterhours_service.web.errors import AppError, ValidationFailed

_NUMERAL = re.compile(r"(-?[0-9]{1,18})(?:\.0{1,18})?")

View = TypeVar("View", bound=Callable[..., Any])


def camel_case(name: str) -> str:
    """Return a snake_case name in camelCase."""
    first, *rest = name.split("_")
    return first + "".join(word.title() for word in rest)


class StrictParser(FlaskParser):
    """Accepts JSON bodies only, and raises ValidationFailed with every problem."""

    DEFAULT_UNKNOWN_BY_LOCATION: dict[str, str | None] = {"query": ma.RAISE, "json": ma.RAISE}  # noqa: RUF012 - typed by webargs

    def parse(self, *args: Any, **kwargs: Any) -> Any:
        """Return the parsed arguments. Raises ValidationFailed only to a member whom the gate admits."""
        try:
            return super().parse(*args, **kwargs)
        except (ValidationFailed, HTTPException):
            gate.settle()
            raise

    def load_json(self, req: Request, schema: ma.Schema) -> Any:
        """Return the parsed body.

        Raises ValidationFailed for another content type, and for anything but a JSON object.
        """
        if not req.is_json:
            raise ValidationFailed.from_messages("Send a JSON object with Content-Type: application/json.")
        try:
            body = super().load_json(req, schema)
        except (RecursionError, ValueError):  # nested too deeply, or a number with too many digits
            body = None
        if not isinstance(body, dict):
            raise ValidationFailed.from_messages("Not a JSON object.")
        return body

    def handle_error(self, error: ma.ValidationError, *_: Any, **__: Any) -> NoReturn:
        """Raise ValidationFailed with a line per field."""
        messages: dict[str, Any] = error.normalized_messages()  # type: ignore[no-untyped-call]
        raise ValidationFailed.from_messages(next(iter(messages.values())) if len(messages) == 1 else messages)

    def _handle_invalid_json_error(self, *_: Any, **__: Any) -> NoReturn:
        raise ValidationFailed.from_messages("Not valid JSON.")


class Blueprint(SmorestBlueprint):  # type: ignore[misc]
    """A flask-smorest blueprint with our parser, which answers 400 where webargs would answer 422.

    failures_of: returns the failures that a route may answer before its view is called, by endpoint, for the API's
    description.
    """

    ARGUMENTS_PARSER = StrictParser()
    ARGUMENTS_PARSER.DEFAULT_VALIDATION_STATUS = 400

    def __init__(
        self, *args: Any, failures_of: Callable[[str], tuple[type[AppError], ...]] = lambda _: (), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.failures_of = failures_of

    def add_url_rule(self, *args: Any, tags: list[str] | None = None, **options: Any) -> None:
        """Add a route, tagged with this blueprint's name, even inside another blueprint."""
        super().add_url_rule(*args, tags=tags or [self.name], **options)

    def arguments(self, schema: type[ma.Schema], **kwargs: Any) -> Callable[[View], View]:
        """Parse the arguments of a route; the schema is built once, as building it takes as long as using it."""
        decorate: Callable[[View], View] = super().arguments(schema(), **kwargs)
        return decorate

    def response(self, *args: Any, **kwargs: Any) -> Callable[[View], View]:
        """Serialize the answer of a route by a schema."""
        decorate: Callable[[View], View] = super().response(*args, headers={"X-Request-ID": "X-Request-ID"}, **kwargs)
        return decorate

    @staticmethod
    def fails(*failures: type[AppError]) -> Callable[[View], View]:
        """Declare the failures of a route's own, for the API's description."""

        def mark(view: View) -> View:
            view.failures = failures  # type: ignore[attr-defined]
            return view

        return mark


class CamelCaseSchema(ma.Schema):
    """snake_case in Python, camelCase in JSON; unknown fields are refused."""

    class Meta:
        """Refuse unknown fields."""

        unknown = ma.RAISE

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        """Give the field its name in JSON."""
        field_obj.data_key = field_obj.data_key or camel_case(field_name)


def envelope(name: str, **parts: fields.Field[Any]) -> type[ma.Schema]:
    """Return the schema of a success, `{"success": true, …parts}`; `name` is for the API's description."""
    parts = {"success": fields.Constant(True), **parts}
    _require(parts)
    return CamelCaseSchema.from_dict(parts, name=name)


def _require(parts: Mapping[str, fields.Field[Any]]) -> None:
    """Mark the fields of an answer as required, nested ones too, because none is ever omitted."""
    for part in parts.values():
        part.required = True
        inner = part.inner if isinstance(part, fields.List) else part
        if isinstance(inner, fields.Nested):
            _require(cast("type[ma.Schema]", inner.nested)._declared_fields)  # noqa: SLF001 - an instance has copies


class StrictFloat(fields.Float):
    """A finite JSON number; numbers in strings are refused."""

    def _validated(self, value: Any) -> float:
        if not isinstance(value, int | float):
            raise self.make_error("invalid", input=value)
        return super()._validated(value)


class StrictInteger(fields.Integer):
    """A whole JSON number, which may be written as 50.0; numbers in strings and booleans are refused."""

    def _validated(self, value: Any) -> int:
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if not whole:
            raise self.make_error("invalid", input=value)
        return super()._validated(value)


class QueryInteger(StrictInteger):
    """A whole number in a query string: ASCII digits, such as 50 or 50.0."""

    def _validated(self, value: Any) -> int:
        numeral = _NUMERAL.fullmatch(value) if isinstance(value, str) else None
        return super()._validated(int(numeral[1]) if numeral else None)


class SafeString(fields.String):
    """Text that PostgreSQL can store: no NUL, no lone surrogate."""

    pattern: ClassVar = r"^[^\u0000]*$"  # as the API's description says it

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> str:
        text: str = super()._deserialize(value, attr, data, **kwargs)
        if not is_storable(text):
            raise self.make_error("invalid_utf8")
        return text


class UtcDateTime(fields.Field[datetime]):
    """An aware datetime, serialized in UTC with milliseconds and Z."""

    def _serialize(self, value: datetime | None, *_: Any, **__: Any) -> str | None:
        return None if value is None else isoformat(value)
