"""What clients send and see of matches."""

from marshmallow import fields, validate

from afterhours_service.web.schemas import CamelCaseSchema, UtcDateTime, envelope


class AnswerSchema(CamelCaseSchema):
    """Which match is accepted or declined."""

    match_id = fields.UUID(required=True)


class MatchedMemberSchema(CamelCaseSchema):
    """The other member, as `/nearby` shows them."""

    user_id = fields.String()
    name = fields.String(allow_none=True)
    age = fields.Integer(allow_none=True)
    photo_url = fields.String(allow_none=True)
    thumbnail_url = fields.String(allow_none=True)
    description = fields.String(allow_none=True)
    distance_km = fields.Integer(metadata={"description": "within so many kilometres"})


class MatchSchema(CamelCaseSchema):
    """A live match, as one of its members sees it."""

    id = fields.String()
    created_at = UtcDateTime()
    expires_at = UtcDateTime()
    auto_decline_at = UtcDateTime(allow_none=True, metadata={"description": "null once one of the two has accepted"})
    accepted = fields.Boolean(metadata={"description": "by me"})
    profile = fields.Nested(MatchedMemberSchema)


CurrentResponse = envelope(
    "CurrentMatchResponse",
    active=fields.Boolean(metadata={"description": "whether I have an active session"}),
    status=fields.String(validate=validate.OneOf(["no_session", "searching", "matched"])),
    match=fields.Nested(MatchSchema, allow_none=True),
)
AcceptResponse = envelope("AcceptMatchResponse", match=fields.Nested(MatchSchema))
DeclineResponse = envelope("DeclineMatchResponse", message=fields.String())
