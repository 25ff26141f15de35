-- Everything the running service's role may do. Run it after each migration, as the role that migrated, with its
-- search_path; it is safe to run again. Create the role itself once: CREATE ROLE after_hours LOGIN PASSWORD '…'.
-- `db downgrade base` revokes it.
GRANT SELECT, INSERT, UPDATE, DELETE
    ON after_hours_sessions, after_hours_untold, after_hours_profiles, after_hours_preferences, after_hours_declines,
        device_fingerprints
    TO after_hours;
GRANT SELECT ON after_hours_alembic_version TO after_hours;

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
    IF to_regclass('after_hours_matches') IS NOT NULL THEN
        GRANT SELECT (session_id) ON after_hours_matches TO after_hours;
    END IF;
    -- The schemas that these tables are in: most often `public` alone.
    FOR place IN
        SELECT DISTINCT relnamespace FROM pg_class
        WHERE oid IN (
            to_regclass('after_hours_sessions'), to_regclass('after_hours_untold'), to_regclass('after_hours_profiles'),
            to_regclass('after_hours_preferences'), to_regclass('after_hours_declines'),
            to_regclass('device_fingerprints'), to_regclass('after_hours_alembic_version'), to_regclass('users'),
            to_regclass('profiles'), to_regclass('user_subscriptions'), to_regclass('blocks'),
            to_regclass('banned_photo_hashes'), to_regclass('after_hours_matches'))
    LOOP
        EXECUTE format('GRANT USAGE ON SCHEMA %s TO after_hours', place);
    END LOOP;
END $$;
