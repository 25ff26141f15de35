"""What clients send and see of a profile."""

from collections.abc import Mapping
from typing import Any

from marshmallow import fields

from afterhours_service.profiles import rules
from afterhours_service.web.schemas import CamelCaseSchema, SafeString, UtcDateTime, envelope


class Description(SafeString):
    """Trimmed text of at most DESCRIPTION_LENGTH characters and DESCRIPTION_BYTES bytes; nothing left is null."""

    pattern = rules.DESCRIPTION_PATTERN
    default_error_messages = {  # noqa: RUF012 - typed by marshmallow
        "too_long": f"Longer than {rules.DESCRIPTION_LENGTH} characters.",
        "too_many_bytes": f"Longer than {rules.DESCRIPTION_BYTES} bytes.",
        "control": "Control characters are not allowed.",
    }

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        text = rules.tidy(super()._deserialize(value, attr, data, **kwargs))
        if text is not None and rules.has_control_characters(text):
            raise self.make_error("control")
        if text is not None and len(text.encode()) > rules.DESCRIPTION_BYTES:
            raise self.make_error("too_many_bytes")
        if text is not None and rules.length(text) > rules.DESCRIPTION_LENGTH:
            raise self.make_error("too_long")
        return text


class DescriptionSchema(CamelCaseSchema):
    """A member's description of themselves; null clears it, leaving it out keeps it."""

    description = Description(
        allow_none=True,
        metadata={
            "description": f"at most {rules.DESCRIPTION_LENGTH} characters as people count them, after trimming, and"
            f" {rules.DESCRIPTION_BYTES} bytes of UTF-8"
        },
    )


class ProfileSchema(CamelCaseSchema):
    """The After Hours profile, with name and age from the main profile."""

    user_id = fields.String()
    name = fields.String(allow_none=True)
    age = fields.Integer(allow_none=True)
    photo_url = fields.String(allow_none=True)
    description = fields.String(allow_none=True)
    created_at = UtcDateTime()
    updated_at = UtcDateTime()


class PhotoSchema(CamelCaseSchema):
    """A photo: a URL that expires, and the key, which does not change."""

    url = fields.String()
    key = fields.String()


PHOTO_FORM = {
    "schema": {
        "type": "object",
        "required": ["photo"],
        "properties": {"photo": {"type": "string", "format": "binary"}},
    },
}
ProfileResponse = envelope("ProfileResponse", profile=fields.Nested(ProfileSchema))
PhotoResponse = envelope("PhotoResponse", photo=fields.Nested(PhotoSchema))
PhotoDeletedResponse = envelope("PhotoDeletedResponse", message=fields.String())
