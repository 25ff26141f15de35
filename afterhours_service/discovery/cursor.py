"""Cursors: where the next page begins, encrypted.

Signing alone would not do: a cursor holds a distance to the metre, and members are shown whole kilometres.
"""

import hmac
import json
import uuid
from base64 import urlsafe_b64encode
from datetime import datetime

from cryptography.fernet import Fernet, InvalidToken

from afterhours_service.config import current_settings
from afterhours_service.discovery.queries import Asker, Position
from afterhours_service.web.errors import ValidationFailed


def encode(me: Asker, position: Position) -> str:
    """Return the cursor of the page after `position`, valid for this session of mine only."""
    content = [str(me.session_id), position.as_of.isoformat(), position.metres, str(position.session_id)]
    return _fernet().encrypt(json.dumps(content).encode()).decode()


def decode(me: Asker, cursor: str) -> Position:
    """Return the position in a cursor. Raises ValidationFailed when it is invalid, or of another session."""
    try:
        session_id, as_of, metres, after_id = json.loads(_fernet().decrypt(cursor.encode()))
    except InvalidToken as error:
        raise ValidationFailed.from_messages({"cursor": ["Invalid cursor."]}) from error
    if session_id != str(me.session_id):
        raise ValidationFailed.from_messages(
            {"cursor": ["This cursor belongs to another session. Start with the first page."]}
        )
    return Position(datetime.fromisoformat(as_of), metres, uuid.UUID(after_id))


def _fernet() -> Fernet:
    digest = hmac.digest(current_settings().location_secret.encode(), b"after-hours/discovery-cursor/1", "sha256")
    return Fernet(urlsafe_b64encode(digest))
