"""What clients send and see of preferences."""

from marshmallow import fields, validate

from afterhours_service.preferences import rules
from afterhours_service.web.schemas import CamelCaseSchema, SafeString, StrictInteger, UtcDateTime, envelope

_AGE = validate.Range(rules.MIN_AGE, rules.MAX_AGE)


class ChangesSchema(CamelCaseSchema):
    """Preferences to set; what is left out is kept, or gets its default."""

    seeking_gender = SafeString(validate=validate.OneOf(rules.GENDERS))
    max_distance_km = StrictInteger(validate=validate.Range(1, rules.MAX_DISTANCE_KM))
    min_age = StrictInteger(validate=_AGE)
    max_age = StrictInteger(validate=_AGE)
    sexual_orientation = SafeString(allow_none=True, validate=validate.OneOf(rules.ORIENTATIONS))


class PreferencesSchema(CamelCaseSchema):
    """A member's preferences."""

    user_id = fields.String()
    seeking_gender = fields.String()
    max_distance_km = fields.Integer()
    min_age = fields.Integer()
    max_age = fields.Integer()
    sexual_orientation = fields.String(allow_none=True)
    created_at = UtcDateTime()
    updated_at = UtcDateTime()


PreferencesResponse = envelope("PreferencesResponse", preferences=fields.Nested(PreferencesSchema))
