"""What our tables hold of a member."""

import afterhours_service.discovery.models
import afterhours_service.preferences.models
import afterhours_service.profiles.models
import afterhours_service.sessions.models
import afterhours_service.stores.host  # noqa: F401 - these five, so that the metadata is whole
from afterhours_service.stores.database import Base
from tests.factories import Factory

HOST_TABLES = {"users", "profiles", "user_subscriptions", "blocks"}
OUTBOX = "after_hours_untold"  # ids of sessions, nobody's once the session is deleted
OUR_TABLES = {
    table.name: [
        column.name for column in table.columns if any(key.column.table.name == "users" for key in column.foreign_keys)
    ]
    for table in Base.metadata.sorted_tables
    if table.name not in {*HOST_TABLES, OUTBOX}
}
IS_OF = {"after_hours_matches": "%s IN (user_id_1, user_id_2)"}  # elsewhere the member is the row's user_id


def held(factory: Factory, member: str) -> dict[str, int]:
    """Return how many rows of each table of ours are the member's."""
    return {
        table: factory.execute(f"SELECT count(*) AS n FROM {table} WHERE {IS_OF.get(table, 'user_id = %s')}", member)[
            0
        ].n
        for table in OUR_TABLES
    }
