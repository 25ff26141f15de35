-- Carries what members say on the host's consent screen, in `user_consents`, over to `users.after_hours_consent`, which
-- the gates of this service and of the Node service read. For hosts whose screen does not call PUT /consent.
--
-- Run by the owner of `users` and `user_consents`, with their schema in the search_path; safe to run again:
--   psql --single-transaction --set ON_ERROR_STOP=1 --file deploy/consent_bridge.sql postgresql://OWNER@HOST/DATABASE
-- The way back: DROP FUNCTION after_hours_bridge_consent CASCADE;
--
-- ADJUST what it assumes of `user_consents` in the lines that are marked so: a row per member and purpose, with
--   user_id, purpose ('after_hours' for ours), granted (boolean), granted_at and withdrawn_at (timestamptz).
DO $install$
DECLARE
    -- ADJUST: the columns that are read.
    needed CONSTANT text[] := ARRAY['user_id', 'purpose', 'granted', 'granted_at', 'withdrawn_at'];
    missing text;
    path text;
BEGIN
    PERFORM set_config('lock_timeout', '5s', true);  -- so that nobody queues behind it; run it again
    -- The function goes where the table is.
    SELECT quote_ident(nspname) INTO path FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE pg_class.oid = 'user_consents'::regclass;
    PERFORM set_config('search_path', path || ', ' || current_setting('search_path'), true);
    SELECT string_agg(name, ', ' ORDER BY name) INTO missing FROM unnest(needed) AS name
    WHERE NOT EXISTS (
        SELECT FROM pg_attribute
        WHERE attrelid = 'user_consents'::regclass AND attname = name AND attnum > 0 AND NOT attisdropped
    );
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'user_consents has no column %: adjust deploy/consent_bridge.sql to your table', missing;
    END IF;

    EXECUTE $function$
        CREATE OR REPLACE FUNCTION after_hours_bridge_consent() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
        DECLARE
            is_ours boolean;
            member text;
            consents boolean := false;  -- a row that is deleted withdraws
        BEGIN
            IF TG_OP = 'DELETE' THEN
                is_ours := OLD.purpose::text = 'after_hours';  -- ADJUST
                member := OLD.user_id;
            ELSE
                is_ours := NEW.purpose::text = 'after_hours';  -- ADJUST
                member := NEW.user_id;
                consents := NEW.granted IS TRUE;  -- ADJUST
            END IF;
            IF is_ours IS NOT TRUE THEN
                RETURN NULL;
            END IF;
            -- The member first, then the session: the order in which the service locks them.
            PERFORM FROM users WHERE id = member FOR UPDATE;  -- a start in flight is waited for
            UPDATE users SET after_hours_consent = consents, after_hours_consent_at = now()
            WHERE id = member AND after_hours_consent IS DISTINCT FROM consents;
            IF NOT consents THEN
                UPDATE after_hours_sessions SET ended_at = least(expires_at, clock_timestamp())
                WHERE user_id = member AND ended_at IS NULL AND expires_at > clock_timestamp();
            END IF;
            RETURN NULL;
        END $$
    $function$;
    -- Whatever the search_path of who writes a consent, the function finds these tables, and no others of these names.
    SELECT string_agg(DISTINCT quote_ident(nspname), ', ') INTO path
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE pg_class.oid IN ('users'::regclass, 'after_hours_sessions'::regclass);
    EXECUTE format('ALTER FUNCTION after_hours_bridge_consent() SET search_path = pg_catalog, %s, pg_temp', path);
    REVOKE ALL ON FUNCTION after_hours_bridge_consent() FROM PUBLIC;
    -- ADJUST: the columns of a decision. To save others of the row again is none.
    CREATE OR REPLACE TRIGGER after_hours_bridge_consent
        AFTER INSERT OR DELETE OR UPDATE OF user_id, purpose, granted ON user_consents
        FOR EACH ROW EXECUTE FUNCTION after_hours_bridge_consent();

    -- What was said before: the later word counts, so a consent that was withdrawn since by PUT /consent stays withdrawn.
    WITH said AS (
        SELECT user_id, granted IS TRUE AS granted, CASE WHEN granted THEN granted_at ELSE withdrawn_at END AS at
        FROM user_consents WHERE purpose::text = 'after_hours'  -- ADJUST
    ), changed AS (
        UPDATE users SET after_hours_consent = said.granted, after_hours_consent_at = said.at FROM said
        WHERE said.user_id = users.id AND said.at > coalesce(after_hours_consent_at, '-infinity')
            AND after_hours_consent IS DISTINCT FROM said.granted
        RETURNING users.id, said.granted
    )
    UPDATE after_hours_sessions SET ended_at = least(expires_at, clock_timestamp()) FROM changed
    WHERE user_id = changed.id AND NOT granted AND ended_at IS NULL AND expires_at > clock_timestamp();
END $install$;
