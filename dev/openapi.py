"""Write docs/openapi.json: what `GET /openapi.json` answers, for readers and for generators of clients."""

import json
from pathlib import Path

from afterhours_service import create_app
from afterhours_service.config import Settings
from afterhours_service.web.openapi import describe

PATH = Path(__file__).parent.parent / "docs" / "openapi.json"


def text() -> str:
    """Return the description as it is to be written; no server is needed."""
    settings = Settings(
        database_url="postgresql+psycopg2://",
        redis_url="redis://",
        jwt_key="",
        jwt_algorithm="HS256",
        api_docs=True,
        location_secret="",
    )
    return json.dumps(describe(create_app(settings)), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.write_text(text())
