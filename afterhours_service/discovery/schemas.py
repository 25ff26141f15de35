"""What clients send and see of discovery."""

from marshmallow import fields, validate

from afterhours_service.discovery.rules import COUNT_TO
from afterhours_service.web.schemas import CamelCaseSchema, QueryInteger, SafeString, UtcDateTime, envelope


class NearbyQuery(CamelCaseSchema):
    """Which page of members, and its length."""

    limit = QueryInteger(load_default=20, validate=validate.Range(1, 50))
    cursor = SafeString(load_default=None, validate=validate.Length(1, 500))


class DeclineSchema(CamelCaseSchema):
    """Whom to decline."""

    user_id = SafeString(required=True, validate=validate.Length(1, 255))


class MemberSchema(CamelCaseSchema):
    """A member near me."""

    user_id = fields.String()
    name = fields.String(allow_none=True)
    age = fields.Integer(allow_none=True)
    photo_url = fields.String(allow_none=True)
    thumbnail_url = fields.String(allow_none=True)
    description = fields.String(allow_none=True)
    distance_km = fields.Integer(metadata={"description": "within so many kilometres"})
    expires_at = UtcDateTime()


class DeclinedSchema(CamelCaseSchema):
    """Whom a decline is about."""

    user_id = fields.String()


NearbyResponse = envelope(
    "NearbyResponse",
    members=fields.List(fields.Nested(MemberSchema)),
    next_cursor=fields.String(allow_none=True),
)
CountResponse = envelope(
    "CountResponse",
    count=fields.Integer(
        attribute="counted", validate=validate.Range(0, COUNT_TO), metadata={"description": "counted up to the maximum"}
    ),
    or_more=fields.Boolean(),
    max_distance_km=fields.Integer(),
)
DeclineResponse = envelope("DeclineResponse", decline=fields.Nested(DeclinedSchema))
TakeBackResponse = envelope("TakeBackResponse", message=fields.String())
