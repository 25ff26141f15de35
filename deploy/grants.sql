-- Everything the running service's role may do. Run it after each migration, as the role that migrated, with its
-- search_path; it is safe to run again. Create the role itself once: CREATE ROLE after_hours LOGIN PASSWORD '…'.
-- `db downgrade base` revokes it.
GRANT SELECT, INSERT, UPDATE, DELETE
    ON after_hours_sessions, after_hours_untold, after_hours_profiles, after_hours_preferences, after_hours_declines,
        after_hours_search, after_hours_places, device_fingerprints
    TO after_hours;
GRANT SELECT ON after_hours_alembic_version TO after_hours;
-- The host's chat service has columns of its own among these.
GRANT SELECT, DELETE ON after_hours_matches TO after_hours;
GRANT INSERT (session_id, session_id_2, user_id_1, user_id_2, created_at, expires_at, lasts_until, respond_by,
        announced_at, due_at),
    UPDATE (session_id_2, expires_at, declined_by, declined_at, respond_by, user1_accepted_at, user2_accepted_at,
        ended_by, end_reason, announced_at, due_at)
    ON after_hours_matches TO after_hours;

-- Of the host's tables it reads what it shows or decides by, and writes only a member's consent.
GRANT SELECT (id, id_verified, after_hours_consent, after_hours_consent_at) ON users TO after_hours;
GRANT UPDATE (after_hours_consent, after_hours_consent_at) ON users TO after_hours;
GRANT SELECT (user_id, name, age, gender, sexual_preference) ON profiles TO after_hours;
GRANT SELECT (user_id, is_active, expires_at) ON user_subscriptions TO after_hours;

DO $$
DECLARE
    place regnamespace;
BEGIN
    -- Not every host has these.
    IF to_regclass('blocks') IS NOT NULL THEN
        GRANT SELECT (user_id, blocked_user_id) ON blocks TO after_hours;
    END IF;
    IF to_regclass('banned_photo_hashes') IS NOT NULL THEN
        GRANT SELECT (photo_hash) ON banned_photo_hashes TO after_hours;
    END IF;
    IF to_regclass('after_hours_messages') IS NOT NULL THEN
        GRANT SELECT (match_id) ON after_hours_messages TO after_hours;
    END IF;
    -- The schemas that these tables are in: most often `public` alone.
    FOR place IN
        SELECT DISTINCT relnamespace FROM pg_class
        WHERE oid IN (
            to_regclass('after_hours_sessions'), to_regclass('after_hours_untold'), to_regclass('after_hours_profiles'),
            to_regclass('after_hours_preferences'), to_regclass('after_hours_declines'),
            to_regclass('device_fingerprints'), to_regclass('after_hours_alembic_version'), to_regclass('users'),
            to_regclass('profiles'), to_regclass('user_subscriptions'), to_regclass('blocks'),
            to_regclass('banned_photo_hashes'), to_regclass('after_hours_matches'), to_regclass('after_hours_search'),
            to_regclass('after_hours_places'), to_regclass('after_hours_messages'))
    LOOP
        EXECUTE format('GRANT USAGE ON SCHEMA %s TO after_hours', place);
    END LOOP;
END $$;
