"""What clients send and see of a session."""

import marshmallow as ma
from marshmallow import fields, validate

from afterhours_service.sessions.rules import DURATIONS_MINUTES
from afterhours_service.web.schemas import (
    CamelCaseSchema,
    SafeString,
    StrictFloat,
    StrictInteger,
    UtcDateTime,
    envelope,
)

_MINUTES = validate.OneOf(DURATIONS_MINUTES, error="Must be 15, 30 or 60.")
_IN_MINUTES = {"description": "minutes"}


class DeviceSchema(CamelCaseSchema):
    """The device that a session is started from; every field is optional."""

    device_id = SafeString(allow_none=True, validate=validate.Length(max=255))
    device_model = SafeString(allow_none=True, validate=validate.Length(max=100))
    platform = SafeString(allow_none=True, validate=validate.OneOf(["ios", "android"]))


class StartSchema(CamelCaseSchema):
    """A request to go live: how long, and where."""

    duration = StrictInteger(required=True, validate=_MINUTES, metadata=_IN_MINUTES)
    latitude = StrictFloat(
        required=True, validate=validate.Range(-90, 90), metadata={"description": "degrees", "examples": [52.52]}
    )
    longitude = StrictFloat(
        required=True, validate=validate.Range(-180, 180), metadata={"description": "degrees", "examples": [13.405]}
    )
    device_fingerprint = fields.Nested(DeviceSchema, allow_none=True, load_default=None)


class ExtendSchema(CamelCaseSchema):
    """A request to stay longer."""

    additional_minutes = StrictInteger(required=True, validate=_MINUTES, metadata=_IN_MINUTES)


class IdempotencySchema(ma.Schema):
    """The headers of a request that may be repeated."""

    class Meta:
        """Other headers are not ours to check."""

        unknown = ma.EXCLUDE

    idempotency_key = fields.String(
        data_key="Idempotency-Key",
        validate=validate.Regexp(r"^[ -~]{1,64}$", error="Must be 1 to 64 printable ASCII characters."),
        metadata={
            "description": "Made up by the client for one extension: repeated with the same key, it extends the session"
            " once and answers the same."
        },
    )


class StartedSchema(CamelCaseSchema):
    """A session that has just begun."""

    id = fields.UUID()
    started_at = UtcDateTime()
    expires_at = UtcDateTime()
    duration_minutes = fields.Integer()


class ActiveSchema(CamelCaseSchema):
    """The active session, as its member sees it."""

    id = fields.UUID()
    started_at = UtcDateTime()
    expires_at = UtcDateTime()
    remaining_seconds = fields.Integer()


class EndedSchema(CamelCaseSchema):
    """A session that its member has ended."""

    id = fields.UUID()
    ended_at = UtcDateTime()


class ExtendedSchema(CamelCaseSchema):
    """A session that its member has extended."""

    id = fields.UUID()
    expires_at = UtcDateTime()
    extended_by_minutes = fields.Integer()


StartResponse = envelope("StartResponse", session=fields.Nested(StartedSchema))
StatusResponse = envelope(
    "StatusResponse", active=fields.Boolean(), session=fields.Nested(ActiveSchema, allow_none=True)
)
EndResponse = envelope("EndResponse", message=fields.String(), session=fields.Nested(EndedSchema))
ExtendResponse = envelope("ExtendResponse", session=fields.Nested(ExtendedSchema))
