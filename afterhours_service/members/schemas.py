"""What members send and see of their rights."""

from typing import Any

from marshmallow import fields

from afterhours_service.schemas import CamelCaseSchema, UtcDateTime, envelope


class StrictBoolean(fields.Boolean):
    """JSON's true or false; 1 and "yes" are neither."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> bool:
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


class GrantSchema(CamelCaseSchema):
    """A member's word on After Hours."""

    granted = StrictBoolean(required=True)


class ConsentSchema(CamelCaseSchema):
    """Whether a member consents, and since when it is so."""

    granted = fields.Boolean()
    changed_at = UtcDateTime(allow_none=True)


class ExportedProfileSchema(CamelCaseSchema):
    """The After Hours profile; the photo's addresses are good for a while."""

    photo_url = fields.String(allow_none=True)
    thumbnail_url = fields.String(allow_none=True)
    photo_hash = fields.String(
        allow_none=True, metadata={"description": "what the photo looks like, in 64 bits; for bans"}
    )
    description = fields.String(allow_none=True)
    created_at = UtcDateTime(allow_none=True)
    updated_at = UtcDateTime(allow_none=True)


class ExportedPreferencesSchema(CamelCaseSchema):
    """The preferences."""

    seeking_gender = fields.String()
    max_distance_km = fields.Integer(allow_none=True)
    min_age = fields.Integer(allow_none=True)
    max_age = fields.Integer(allow_none=True)
    sexual_orientation = fields.String(allow_none=True)
    interests = fields.List(
        fields.String(),
        dump_default=None,
        allow_none=True,
        metadata={"description": "kept by the service before this one"},
    )
    created_at = UtcDateTime(allow_none=True)
    updated_at = UtcDateTime(allow_none=True)


class ExportedSessionSchema(CamelCaseSchema):
    """A retained session, and the blurred point from which its member was shown."""

    id = fields.UUID()
    started_at = UtcDateTime(allow_none=True)
    expires_at = UtcDateTime()
    ended_at = UtcDateTime(allow_none=True)
    warned_at = UtcDateTime(allow_none=True)
    blurred_latitude = fields.Float()
    blurred_longitude = fields.Float()


class ExportedDeclineSchema(CamelCaseSchema):
    """A member whom one did not want to see."""

    declined_user_id = fields.String()
    session_id = fields.UUID()
    created_at = UtcDateTime(allow_none=True)
    first_declined_at = UtcDateTime(allow_none=True)
    decline_count = fields.Integer(allow_none=True)


class ExportedDeviceSchema(CamelCaseSchema):
    """A device that a session was started from."""

    session_id = fields.UUID(allow_none=True)
    device_id = fields.String(allow_none=True)
    device_model = fields.String(allow_none=True)
    platform = fields.String(allow_none=True)
    created_at = UtcDateTime(allow_none=True)


class ExportSchema(CamelCaseSchema):
    """Everything that is held on a member."""

    user_id = fields.String()
    consent = fields.Nested(ConsentSchema, allow_none=True)
    profile = fields.Nested(ExportedProfileSchema, allow_none=True)
    preferences = fields.Nested(ExportedPreferencesSchema, allow_none=True)
    sessions = fields.List(fields.Nested(ExportedSessionSchema))
    declines = fields.List(fields.Nested(ExportedDeclineSchema))
    devices = fields.List(fields.Nested(ExportedDeviceSchema))


ConsentResponse = envelope("ConsentResponse", consent=fields.Nested(ConsentSchema))
ExportResponse = envelope("ExportResponse", data=fields.Nested(ExportSchema))
ErasedResponse = envelope("ErasedResponse", message=fields.String())
