"""What members send and see of their rights."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from marshmallow import fields

from afterhours_service.web.schemas import CamelCaseSchema, UtcDateTime, envelope


class StrictBoolean(fields.Boolean):
    """JSON's true or false; 1 and "yes" are neither."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> bool:
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


class GrantSchema(CamelCaseSchema):
    """A member's consent to After Hours, or its withdrawal."""

    granted = StrictBoolean(required=True)


class ConsentSchema(CamelCaseSchema):
    """Whether a member consents, and since when it is so."""

    granted = fields.Boolean()
    changed_at = UtcDateTime(allow_none=True)


class ExportedProfileSchema(CamelCaseSchema):
    """The After Hours profile; the photo's addresses expire."""

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
    created_at = UtcDateTime(allow_none=True)
    started_at = UtcDateTime(allow_none=True)
    expires_at = UtcDateTime()
    ended_at = UtcDateTime(allow_none=True)
    warned_at = UtcDateTime(allow_none=True)
    blurred_latitude = fields.Float()
    blurred_longitude = fields.Float()
    extension_key = fields.String(
        allow_none=True, metadata={"description": "the last Idempotency-Key of an extension, and what was answered"}
    )
    extension_minutes = fields.Integer(allow_none=True)
    extension_expires_at = UtcDateTime(allow_none=True)
    discovery_key = fields.String(
        allow_none=True,
        metadata={"description": "by which others find it: the blurred point, gender, gender sought, age"},
    )
    discovery_wish = fields.String(allow_none=True, metadata={"description": "the genders, ages and distance wanted"})


class ExportedDeclineSchema(CamelCaseSchema):
    """A member who was declined."""

    id = fields.UUID()
    declined_user_id = fields.String()
    session_id = fields.UUID()
    last_session_id = fields.UUID(allow_none=True)
    created_at = UtcDateTime(allow_none=True)
    first_declined_at = UtcDateTime(allow_none=True)
    decline_count = fields.Integer(allow_none=True)


class ExportedPlaceSchema(CamelCaseSchema):
    """What the blur remembers of a place: an opaque digest, the point that others' distances were computed from."""

    id = fields.UUID(metadata={"description": "a digest; nobody can tell the place from it without a secret"})
    blurred_latitude = fields.Float()
    blurred_longitude = fields.Float()
    visits = fields.Integer(metadata={"description": "how often in a row it was this point"})
    last_seen = fields.Date()


class ExportedDeviceSchema(CamelCaseSchema):
    """A device that a session was started from."""

    id = fields.UUID()
    session_id = fields.UUID(allow_none=True)
    device_id = fields.String(allow_none=True)
    device_model = fields.String(allow_none=True)
    platform = fields.String(allow_none=True)
    created_at = UtcDateTime(allow_none=True)


class ExportedSearchSchema(CamelCaseSchema):
    """The search for somebody to be shown, while one is live."""

    session_id = fields.UUID()
    since = UtcDateTime()
    look_at = UtcDateTime(allow_none=True)
    looked_at = UtcDateTime(allow_none=True)
    told_at = UtcDateTime(allow_none=True)
    match_id = fields.UUID(allow_none=True)
    key = fields.String(metadata={"description": "as discoveryKey of the session"})
    wish = fields.String(metadata={"description": "as discoveryWish of the session"})
    me = fields.String(metadata={"description": "gender and age"})


class ExportedMatchSchema(CamelCaseSchema):
    """A match: when it was, and how it ended. Of the other member, the id alone."""

    id = fields.UUID()
    session_id = fields.UUID(allow_none=True)
    other_user_id = fields.String()
    created_at = UtcDateTime(allow_none=True)
    expires_at = UtcDateTime()
    respond_by = UtcDateTime(allow_none=True)
    lasts_until = UtcDateTime(allow_none=True)
    accepted_at = UtcDateTime(allow_none=True)
    save_vote = fields.Boolean(allow_none=True)
    declined_by_me = fields.Boolean(allow_none=True)
    declined_at = UtcDateTime(allow_none=True)
    ended_at = UtcDateTime(allow_none=True)
    ended_by_me = fields.Boolean(allow_none=True)
    end_reason = fields.String(allow_none=True)
    announced_at = UtcDateTime(allow_none=True)
    due_at = UtcDateTime(allow_none=True)


class ExportedExpirySchema(CamelCaseSchema):
    """An expired session whose event is still pending, and when publishing it is retried."""

    session_id = fields.UUID()
    publish_at = UtcDateTime()


class ExportSchema(CamelCaseSchema):
    """Everything that is held on a member."""

    user_id = fields.String()
    consent = fields.Nested(ConsentSchema, allow_none=True)
    profile = fields.Nested(ExportedProfileSchema, allow_none=True)
    preferences = fields.Nested(ExportedPreferencesSchema, allow_none=True)
    sessions = fields.List(fields.Nested(ExportedSessionSchema))
    places = fields.List(fields.Nested(ExportedPlaceSchema))
    declines = fields.List(fields.Nested(ExportedDeclineSchema))
    devices = fields.List(fields.Nested(ExportedDeviceSchema))
    search = fields.Nested(ExportedSearchSchema, allow_none=True)
    matches = fields.List(fields.Nested(ExportedMatchSchema))
    unpublished_expiries = fields.List(fields.Nested(ExportedExpirySchema))


def write_export(member_id: str, parts: Iterable[tuple[str, Iterable[Sequence[Mapping[Any, Any]]]]]) -> Iterator[str]:
    """Write an export as JSON, as ExportSchema would dump it, in pieces: the single rows, then the lists page by page.

    parts: each field's name and its rows, in pages.
    """
    written = f'{{"userId": {json.dumps(member_id)}'
    for name, pages in parts:
        field = _EXPORT.fields[name]
        written += f',\n"{field.data_key}": '
        if isinstance(field, fields.List):
            separator = "["
            for page in pages:
                rows = cast("fields.Nested", field.inner).schema.dump(page, many=True)
                yield written + separator + ",\n".join(map(json.dumps, rows))
                written, separator = "", ",\n"
            written += "[]" if separator == "[" else "]"
        else:
            row = next((row for page in pages for row in page), None)
            written += json.dumps(field.serialize(name, {name: row}))
    yield written + "}"


_EXPORT = ExportSchema()


ConsentResponse = envelope("ConsentResponse", consent=fields.Nested(ConsentSchema))
ExportResponse = envelope("ExportResponse", data=fields.Nested(ExportSchema))
ErasedResponse = envelope("ErasedResponse", message=fields.String())
