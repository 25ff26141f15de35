"""Make the tables of matching: the matches, unless the host has that table, and the search of each live member.

The host's table gets columns of ours, all nullable; its matches that are over are left alone. Triggers, whoever writes:
nobody gets into two live matches; a match that is over lets both search again; a session that its member ends
takes its match along; a search follows its session. They run with the rights of the role that migrates, as the host's
chat service may have none on our tables.
"""

from afterhours_service.stores import migrating
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

MATCHES = """
    CREATE TABLE after_hours_matches (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        session_id uuid NOT NULL REFERENCES after_hours_sessions (id) ON DELETE CASCADE,
        user_id_1 varchar(255) NOT NULL REFERENCES users (id) ON DELETE CASCADE,
        user_id_2 varchar(255) NOT NULL REFERENCES users (id) ON DELETE CASCADE,
        created_at timestamptz DEFAULT CURRENT_TIMESTAMP,
        expires_at timestamptz NOT NULL,
        user1_save_vote boolean DEFAULT false,
        user2_save_vote boolean DEFAULT false,
        converted_to_match_id varchar(255),
        declined_by varchar(255) REFERENCES users (id) ON DELETE SET NULL,
        declined_at timestamptz,
        UNIQUE (session_id, user_id_1, user_id_2))
"""
COLUMNS = {
    "session_id_2": "uuid",
    "respond_by": "timestamptz",
    "lasts_until": "timestamptz",
    "user1_accepted_at": "timestamptz",
    "user2_accepted_at": "timestamptz",
    "ended_at": "timestamptz",
    "ended_by": "varchar(255)",
    "end_reason": "varchar(20)",
    "announced_at": "timestamptz",
    "due_at": "timestamptz",
}
INDEXES = {
    "idx_after_hours_matches_user_1": "(user_id_1, expires_at)",
    "idx_after_hours_matches_user_2": "(user_id_2, expires_at)",
    "idx_after_hours_matches_session_2": "(session_id_2) WHERE session_id_2 IS NOT NULL",
    "idx_after_hours_matches_due": "(due_at) WHERE due_at IS NOT NULL",
    "idx_after_hours_matches_expires": "(expires_at, id)",
}
# Rows change several times each and are few: room for updates in place, and a vacuum by their number.
SEARCH = """
    CREATE TABLE IF NOT EXISTS after_hours_search (
        user_id varchar(255) PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE,
        session_id uuid NOT NULL,
        key cube NOT NULL,
        wish cube NOT NULL,
        me cube NOT NULL,
        since timestamptz NOT NULL,
        look_at timestamptz,
        looked_at timestamptz,
        told_at timestamptz,
        match_id uuid)
    WITH (fillfactor = 70, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_scale_factor = 0)
"""
SEARCH_INDEXES = """
    CREATE INDEX IF NOT EXISTS idx_after_hours_search_due ON after_hours_search (look_at) WHERE look_at IS NOT NULL;
    CREATE INDEX IF NOT EXISTS idx_after_hours_search_untold ON after_hours_search (looked_at)
        WHERE looked_at IS NOT NULL AND told_at IS NULL;
    CREATE INDEX IF NOT EXISTS idx_after_hours_search_pool ON after_hours_search USING gist (
        cube(1048576 * floor(cube_ll_coord(key, 3) / 25000)
            + 1024 * floor(cube_ll_coord(key, 2) / 25000) + floor(cube_ll_coord(key, 1) / 25000)), key)
        WHERE looked_at IS NOT NULL;
"""

# For statements, which cannot name the functions of `cube`.
BOUNDS = """
    CREATE OR REPLACE FUNCTION after_hours_low(of cube, axis integer) RETURNS float8 IMMUTABLE PARALLEL SAFE
        RETURN cube_ll_coord(of, axis);
    CREATE OR REPLACE FUNCTION after_hours_high(of cube, axis integer) RETURNS float8 IMMUTABLE PARALLEL SAFE
        RETURN cube_ur_coord(of, axis);
"""
# The clock is read after a lock was waited for: what ended meanwhile is over. The length of a minute is a setting of
# the service's connections.
FUNCTIONS = """
    CREATE OR REPLACE FUNCTION after_hours_match_locks() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        PERFORM FROM {users} WHERE id IN (NEW.user_id_1, NEW.user_id_2) ORDER BY id FOR NO KEY UPDATE;
        RETURN NEW;
    END $$;

    CREATE OR REPLACE FUNCTION after_hours_match_made() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    -- One index lookup for each member, whatever the planner thinks of `added`, and the statement has set.
    SET enable_nestloop = on SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off AS $$
    DECLARE
        moment timestamptz := clock_timestamp();
    BEGIN
        IF current_setting('transaction_isolation') <> 'read committed' THEN -- it would not see what it waited for
            RAISE EXCEPTION 'matches are inserted at READ COMMITTED only' USING ERRCODE = 'feature_not_supported';
        END IF;
        -- Two inserts for one member wait for each other here, and the second sees the match of the first.
        PERFORM FROM {users} WHERE id IN (
            SELECT unnest(ARRAY[user_id_1, user_id_2]) FROM added WHERE declined_by IS NULL AND expires_at > moment
        ) ORDER BY id FOR NO KEY UPDATE;
        moment := clock_timestamp();
        IF EXISTS (
            SELECT FROM added CROSS JOIN LATERAL (VALUES (user_id_1), (user_id_2)) AS member (id)
            WHERE added.declined_by IS NULL AND added.expires_at > moment AND (
                (SELECT true FROM {matches} AS other WHERE other.user_id_1 = member.id AND other.id <> added.id
                    AND other.expires_at > moment AND other.declined_by IS NULL LIMIT 1)
                OR (SELECT true FROM {matches} AS other WHERE other.user_id_2 = member.id AND other.id <> added.id
                    AND other.expires_at > moment AND other.declined_by IS NULL LIMIT 1))
        ) THEN
            RAISE EXCEPTION 'a member of this match has a live match' USING ERRCODE = 'unique_violation';
        END IF;
        UPDATE {search} AS search SET match_id = made.id, look_at = NULL, looked_at = NULL
            FROM (
                SELECT id, unnest(ARRAY[user_id_1, user_id_2]) AS user_id FROM added
                WHERE declined_by IS NULL AND expires_at > moment
            ) AS made
            WHERE search.user_id = made.user_id;
        RETURN NULL;
    END $$;

    CREATE OR REPLACE FUNCTION after_hours_match_over() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    DECLARE
        moment timestamptz := clock_timestamp();
        decliner text;
        half_minute interval := interval '0.5 seconds'
            * coalesce(nullif(current_setting('after_hours.minute_seconds', true), '')::integer, 60);
    BEGIN
        IF TG_OP = 'UPDATE' THEN
            IF OLD.ended_at IS NOT NULL THEN -- and stays over, also if the decline is forgotten
                NEW.expires_at := least(NEW.expires_at, OLD.expires_at);
                IF NEW.declined_by IS NULL THEN
                    NEW.expires_at := least(NEW.expires_at, OLD.ended_at);
                END IF;
                RETURN NEW;
            END IF;
            IF OLD.due_at IS NULL OR NEW.declined_by IS NULL AND NEW.expires_at > moment THEN
                RETURN NEW; -- it was over before there was this trigger, or is not over yet
            END IF;
            decliner := NEW.declined_by;
            NEW.ended_at := coalesce(NEW.ended_at, least(NEW.expires_at, moment));
            NEW.ended_by := coalesce(NEW.ended_by, decliner);
            NEW.end_reason := coalesce(NEW.end_reason, CASE WHEN decliner IS NULL THEN 'timeout' ELSE 'declined' END);
            IF NEW.due_at IS NOT DISTINCT FROM OLD.due_at THEN
                NEW.due_at := moment;
            END IF;
            moment := NEW.ended_at;
        END IF;
        UPDATE {search} SET match_id = NULL, looked_at = NULL, told_at = NULL, since = moment,
            look_at = CASE WHEN user_id = decliner
                THEN date_trunc('second', moment + half_minute + interval '999999 microseconds') ELSE moment END
            WHERE user_id IN (OLD.user_id_1, OLD.user_id_2) AND match_id = OLD.id;
        RETURN coalesce(NEW, OLD);
    END $$;

    CREATE OR REPLACE FUNCTION after_hours_search_follow() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    DECLARE
        moment timestamptz := clock_timestamp();
        taken uuid;
        before uuid;
        minute interval := interval '1 second'
            * coalesce(nullif(current_setting('after_hours.minute_seconds', true), '')::integer, 60);
        is_anew boolean := OLD.expires_at < moment + 2 * minute
            OR (OLD.discovery_key::text, OLD.discovery_wish::text)
                IS DISTINCT FROM (NEW.discovery_key::text, NEW.discovery_wish::text);
    BEGIN
        SELECT match_id INTO taken FROM {search} WHERE user_id = NEW.user_id AND session_id = NEW.id;
        IF NOT FOUND THEN -- a session of another service, or matching is off: the match may be another service's
            IF NEW.ended_at IS NOT NULL THEN
                UPDATE {matches} SET expires_at = clock_timestamp(), ended_by = NEW.user_id, end_reason = 'left'
                    WHERE user_id_1 = NEW.user_id AND declined_by IS NULL AND expires_at > clock_timestamp();
                UPDATE {matches} SET expires_at = clock_timestamp(), ended_by = NEW.user_id, end_reason = 'left'
                    WHERE user_id_2 = NEW.user_id AND declined_by IS NULL AND expires_at > clock_timestamp();
            END IF;
            RETURN NULL;
        END IF;
        -- First the match, as a decline does, then the search; a round that is matching the member is waited for there,
        -- and then it is the turn of its match.
        FOR turn IN 1..2 LOOP
            before := taken;
            IF NEW.ended_at IS NOT NULL THEN
                UPDATE {matches} SET expires_at = clock_timestamp(), ended_by = NEW.user_id, end_reason = 'left'
                    WHERE id = taken AND ended_at IS NULL AND declined_by IS NULL AND expires_at > clock_timestamp();
                DELETE FROM {search} WHERE user_id = NEW.user_id AND session_id = NEW.id RETURNING match_id INTO taken;
            ELSE
                UPDATE {matches} AS match SET expires_at = least(
                        coalesce(lasts_until, created_at + 10 * minute), NEW.expires_at,
                        (SELECT s.expires_at FROM {sessions} AS s WHERE s.ended_at IS NULL AND s.user_id =
                            CASE NEW.user_id WHEN user_id_1 THEN user_id_2 ELSE user_id_1 END))
                    WHERE id = taken AND ended_at IS NULL AND declined_by IS NULL
                        AND match.expires_at > clock_timestamp() AND NEW.expires_at <> OLD.expires_at;
                UPDATE {search} SET key = NEW.discovery_key, wish = NEW.discovery_wish,
                    looked_at = CASE WHEN match_id IS NOT NULL OR NOT is_anew THEN looked_at END,
                    told_at = CASE WHEN match_id IS NOT NULL OR NOT is_anew THEN told_at END,
                    look_at = coalesce(look_at, CASE WHEN match_id IS NULL AND is_anew THEN moment END)
                    WHERE user_id = NEW.user_id RETURNING match_id INTO taken;
            END IF;
            EXIT WHEN taken IS NOT DISTINCT FROM before;
        END LOOP;
        RETURN NULL;
    END $$;
"""
# Whoever inserts a row locks its members first, as a round does: the other way round, the two would wait for each other
# if they made the same match. A round's rows have a second session, and it has locked the members of all of them.
TRIGGERS = """
    CREATE OR REPLACE TRIGGER after_hours_match_locks BEFORE INSERT ON after_hours_matches
        FOR EACH ROW WHEN (NEW.session_id_2 IS NULL) EXECUTE FUNCTION after_hours_match_locks();
    CREATE OR REPLACE TRIGGER after_hours_match_made AFTER INSERT ON after_hours_matches
        REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION after_hours_match_made();
    CREATE OR REPLACE TRIGGER after_hours_match_over
        BEFORE UPDATE OF declined_by, expires_at OR DELETE ON after_hours_matches
        FOR EACH ROW EXECUTE FUNCTION after_hours_match_over();
    CREATE OR REPLACE TRIGGER after_hours_search_follow
        AFTER UPDATE OF ended_at, expires_at, discovery_key, discovery_wish ON after_hours_sessions
        FOR EACH ROW WHEN (OLD.ended_at IS NULL AND (NEW.ended_at IS NULL OR NEW.ended_at < NEW.expires_at))
        EXECUTE FUNCTION after_hours_search_follow();
"""


def upgrade() -> None:
    if not migrating.exists("after_hours_matches"):
        op.execute(MATCHES)
        migrating.note("TABLE after_hours_matches", revision)
    for column, kind in COLUMNS.items():
        op.execute(f"ALTER TABLE after_hours_matches ADD COLUMN IF NOT EXISTS {column} {kind}")
        migrating.note(f"COLUMN after_hours_matches.{column}", revision)
    # For matches that others insert, and announce themselves.
    for column in ("announced_at", "due_at"):
        op.execute(f"ALTER TABLE after_hours_matches ALTER COLUMN {column} SET DEFAULT statement_timestamp()")
    op.execute("""
        UPDATE after_hours_matches SET announced_at = statement_timestamp(), due_at = statement_timestamp()
        WHERE declined_by IS NULL AND expires_at > statement_timestamp() AND due_at IS NULL
    """)
    op.execute(SEARCH)
    migrating.note("TABLE after_hours_search", revision)
    op.execute(SEARCH_INDEXES)
    op.execute(BOUNDS)
    tables = ("users", "after_hours_matches", "after_hours_search", "after_hours_sessions")
    op.execute(FUNCTIONS.format(**{name.removeprefix("after_hours_"): migrating.qualified(name) for name in tables}))
    op.execute(TRIGGERS)
    with op.get_context().autocommit_block():
        for name, columns in INDEXES.items():
            migrating.make_index(name, f"after_hours_matches {columns}", revision)


def downgrade() -> None:
    op.execute("""
        DROP TRIGGER after_hours_search_follow ON after_hours_sessions;
        DROP TRIGGER after_hours_match_over ON after_hours_matches;
        DROP TRIGGER after_hours_match_made ON after_hours_matches;
        DROP TRIGGER after_hours_match_locks ON after_hours_matches;
        DROP FUNCTION after_hours_search_follow();
        DROP FUNCTION after_hours_match_over();
        DROP FUNCTION after_hours_match_made();
        DROP FUNCTION after_hours_match_locks();
        DROP FUNCTION after_hours_high(cube, integer);
        DROP FUNCTION after_hours_low(cube, integer);
        DROP TABLE after_hours_search;
    """)
    if migrating.is_made("after_hours_matches"):
        op.execute("DROP TABLE after_hours_matches")
        return
    for name in INDEXES:
        migrating.drop_index(name)
    for column in COLUMNS:
        op.execute(f"ALTER TABLE after_hours_matches DROP COLUMN {column}")
