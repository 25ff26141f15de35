"""Cursors: where the next page begins, sealed.

Encrypted and not only signed, as they hold a distance to the metre, where members are told kilometres.
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


def seal(me: Asker, position: Position) -> str:
    """Return the cursor of the page that follows `position`, for this session of mine alone."""
    content = [str(me.session_id), position.as_of.isoformat(), position.metres, str(position.session_id)]
    return _fernet().encrypt(json.dumps(content).encode()).decode()


def unseal(me: Asker, cursor: str) -> Position:
    """Return the position in a cursor.

    Raises ValidationFailed when it was not made here, or for another session.
    """
    try:
        session_id, as_of, metres, after_id = json.loads(_fernet().decrypt(cursor.encode()))
    except InvalidToken as error:
        raise ValidationFailed.from_messages({"cursor": ["Not a cursor of ours."]}) from error
    if session_id != str(me.session_id):
        raise ValidationFailed.from_messages({"cursor": ["Of another session; begin with the first page."]})
    return Position(datetime.fromisoformat(as_of), metres, uuid.UUID(after_id))


def _fernet() -> Fernet:
    digest = hmac.digest(current_settings().location_secret.encode(), b"after-hours/discovery-cursor/1", "sha256")
    return Fernet(urlsafe_b64encode(digest))
