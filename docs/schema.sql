-- The schema, as the migrations in alembic/ make it in an empty database. Written by `make schema`; do not edit.
-- A comment "made by After Hours 0005" names the migration that made the object.


-- Extensions

CREATE EXTENSION IF NOT EXISTS cube WITH SCHEMA public;

COMMENT ON EXTENSION cube IS 'made by After Hours 0005';


-- users: owned by the host application; created only where it is missing

CREATE TABLE users (
    id character varying(255) NOT NULL,
    provider character varying(50) NOT NULL,
    email character varying(255),
    id_verified boolean DEFAULT false,
    after_hours_consent boolean DEFAULT false,
    after_hours_consent_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP
);
COMMENT ON TABLE users IS 'made by After Hours 0001';
ALTER TABLE ONLY users ADD CONSTRAINT users_pkey PRIMARY KEY (id);


-- profiles: owned by the host application; created only where it is missing

CREATE TABLE profiles (
    user_id character varying(255) NOT NULL,
    name character varying(255),
    age integer,
    gender character varying(50),
    sexual_preference character varying(50)
);
COMMENT ON TABLE profiles IS 'made by After Hours 0001';
ALTER TABLE ONLY profiles ADD CONSTRAINT profiles_pkey PRIMARY KEY (user_id);
ALTER TABLE ONLY profiles ADD CONSTRAINT profiles_user_id_fkey FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE CASCADE;


-- user_subscriptions: owned by the host application; created only where it is missing

CREATE TABLE user_subscriptions (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    user_id character varying(255) NOT NULL,
    is_active boolean DEFAULT false NOT NULL,
    product_id text,
    expires_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP
);
COMMENT ON TABLE user_subscriptions IS 'made by After Hours 0001';
ALTER TABLE ONLY user_subscriptions ADD CONSTRAINT user_subscriptions_pkey PRIMARY KEY (id);
CREATE INDEX ix_user_subscriptions_user_id ON user_subscriptions USING btree (user_id);
COMMENT ON INDEX ix_user_subscriptions_user_id IS 'made by After Hours 0001';
ALTER TABLE ONLY user_subscriptions ADD CONSTRAINT user_subscriptions_user_id_fkey FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE CASCADE;


-- blocks: owned by the host application; created only where it is missing

CREATE TABLE blocks (
    id character varying(255) DEFAULT gen_random_uuid() NOT NULL,
    user_id character varying(255) NOT NULL,
    blocked_user_id character varying(255) NOT NULL,
    reason text,
    created_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP
);
COMMENT ON TABLE blocks IS 'made by After Hours 0005';
ALTER TABLE ONLY blocks ADD CONSTRAINT blocks_pkey PRIMARY KEY (id);
ALTER TABLE ONLY blocks ADD CONSTRAINT blocks_user_id_blocked_user_id_key UNIQUE (user_id, blocked_user_id);


-- after_hours_profiles

CREATE TABLE after_hours_profiles (
    user_id character varying(255) NOT NULL,
    photo_url text,
    description text,
    created_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP,
    photo_hash character varying(16)
);
COMMENT ON TABLE after_hours_profiles IS 'made by After Hours 0001';
COMMENT ON COLUMN after_hours_profiles.photo_hash IS 'made by After Hours 0012';
ALTER TABLE ONLY after_hours_profiles ADD CONSTRAINT after_hours_profiles_pkey PRIMARY KEY (user_id);
CREATE INDEX idx_after_hours_profiles_photo ON after_hours_profiles USING btree (photo_url);
COMMENT ON INDEX idx_after_hours_profiles_photo IS 'made by After Hours 0002';
ALTER TABLE ONLY after_hours_profiles ADD CONSTRAINT after_hours_profiles_user_id_fkey FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE CASCADE;


-- after_hours_preferences

CREATE TABLE after_hours_preferences (
    user_id character varying(255) NOT NULL,
    seeking_gender character varying(50) DEFAULT 'Any'::character varying NOT NULL,
    max_distance_km integer DEFAULT 10,
    min_age integer DEFAULT 18,
    max_age integer DEFAULT 99,
    sexual_orientation character varying(50),
    created_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT after_hours_preferences_ages_check CHECK ((((min_age >= 18) AND (min_age <= 99)) AND ((max_age >= 18) AND (max_age <= 99)) AND (min_age <= max_age))),
    CONSTRAINT after_hours_preferences_max_distance_km_check CHECK (((max_distance_km >= 1) AND (max_distance_km <= 200))),
    CONSTRAINT after_hours_preferences_seeking_gender_check CHECK (((seeking_gender)::text = ANY ((ARRAY['Any'::character varying, 'Male'::character varying, 'Female'::character varying, 'Non-binary'::character varying])::text[]))),
    CONSTRAINT after_hours_preferences_sexual_orientation_check CHECK (((sexual_orientation)::text = ANY ((ARRAY['Straight'::character varying, 'Gay'::character varying, 'Bisexual'::character varying, 'Pansexual'::character varying, 'Queer'::character varying, 'Other'::character varying])::text[])))
);
COMMENT ON TABLE after_hours_preferences IS 'made by After Hours 0001';
COMMENT ON CONSTRAINT after_hours_preferences_ages_check ON after_hours_preferences IS 'made by After Hours 0001';
COMMENT ON CONSTRAINT after_hours_preferences_max_distance_km_check ON after_hours_preferences IS 'made by After Hours 0001';
COMMENT ON CONSTRAINT after_hours_preferences_seeking_gender_check ON after_hours_preferences IS 'made by After Hours 0001';
COMMENT ON CONSTRAINT after_hours_preferences_sexual_orientation_check ON after_hours_preferences IS 'made by After Hours 0001';
ALTER TABLE ONLY after_hours_preferences ADD CONSTRAINT after_hours_preferences_pkey PRIMARY KEY (user_id);
ALTER TABLE ONLY after_hours_preferences ADD CONSTRAINT after_hours_preferences_user_id_fkey FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE CASCADE;


-- after_hours_sessions

CREATE TABLE after_hours_sessions (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    user_id character varying(255) NOT NULL,
    started_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP,
    expires_at timestamp with time zone NOT NULL,
    ended_at timestamp with time zone,
    latitude numeric(10,8),
    longitude numeric(11,8),
    fuzzed_latitude numeric(10,8) NOT NULL,
    fuzzed_longitude numeric(11,8) NOT NULL,
    created_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP,
    warned_at timestamp with time zone,
    discovery_key cube,
    discovery_wish cube,
    extension_key character varying(64),
    extension_minutes integer,
    extension_expires_at timestamp with time zone,
    CONSTRAINT after_hours_sessions_expires_after_start_check CHECK ((expires_at > started_at)),
    CONSTRAINT after_hours_sessions_fuzzed_location_check CHECK ((((fuzzed_latitude >= ('-90'::integer)::numeric) AND (fuzzed_latitude <= (90)::numeric)) AND ((fuzzed_longitude >= ('-180'::integer)::numeric) AND (fuzzed_longitude <= (180)::numeric)))),
    CONSTRAINT after_hours_sessions_location_check CHECK ((((latitude >= ('-90'::integer)::numeric) AND (latitude <= (90)::numeric)) AND ((longitude >= ('-180'::integer)::numeric) AND (longitude <= (180)::numeric))))
);
COMMENT ON TABLE after_hours_sessions IS 'made by After Hours 0001';
COMMENT ON COLUMN after_hours_sessions.latitude IS 'no longer NOT NULL since After Hours';
COMMENT ON COLUMN after_hours_sessions.longitude IS 'no longer NOT NULL since After Hours';
COMMENT ON COLUMN after_hours_sessions.warned_at IS 'made by After Hours 0001';
COMMENT ON CONSTRAINT after_hours_sessions_expires_after_start_check ON after_hours_sessions IS 'made by After Hours 0001';
COMMENT ON CONSTRAINT after_hours_sessions_fuzzed_location_check ON after_hours_sessions IS 'made by After Hours 0001';
COMMENT ON CONSTRAINT after_hours_sessions_location_check ON after_hours_sessions IS 'made by After Hours 0001';
ALTER TABLE ONLY after_hours_sessions ADD CONSTRAINT after_hours_sessions_pkey PRIMARY KEY (id);
CREATE UNIQUE INDEX idx_after_hours_sessions_active_user ON after_hours_sessions USING btree (user_id) WHERE (ended_at IS NULL);
COMMENT ON INDEX idx_after_hours_sessions_active_user IS 'made by After Hours 0001';
CREATE INDEX idx_after_hours_sessions_ended ON after_hours_sessions USING btree (ended_at) WHERE (ended_at IS NOT NULL);
COMMENT ON INDEX idx_after_hours_sessions_ended IS 'made by After Hours 0001';
CREATE INDEX idx_after_hours_sessions_expires ON after_hours_sessions USING btree (expires_at) WHERE (ended_at IS NULL);
COMMENT ON INDEX idx_after_hours_sessions_expires IS 'made by After Hours 0001';
CREATE INDEX idx_after_hours_sessions_nearest ON after_hours_sessions USING gist (cube(((((1048576)::double precision * floor((cube_ll_coord(discovery_key, 3) / (25000)::double precision))) + ((1024)::double precision * floor((cube_ll_coord(discovery_key, 2) / (25000)::double precision)))) + floor((cube_ll_coord(discovery_key, 1) / (25000)::double precision)))), discovery_key) WHERE ((ended_at IS NULL) AND (discovery_key IS NOT NULL));
CREATE INDEX idx_after_hours_sessions_user_started ON after_hours_sessions USING btree (user_id, started_at);
COMMENT ON INDEX idx_after_hours_sessions_user_started IS 'made by After Hours 0013';
ALTER TABLE ONLY after_hours_sessions ADD CONSTRAINT after_hours_sessions_user_id_fkey FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE CASCADE;


-- after_hours_declines

CREATE TABLE after_hours_declines (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    session_id uuid NOT NULL,
    user_id character varying(255) NOT NULL,
    declined_user_id character varying(255) NOT NULL,
    created_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP,
    decline_count integer DEFAULT 1,
    first_declined_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP,
    last_session_id uuid
);
COMMENT ON TABLE after_hours_declines IS 'made by After Hours 0001';
ALTER TABLE ONLY after_hours_declines ADD CONSTRAINT after_hours_declines_pkey PRIMARY KEY (id);
ALTER TABLE ONLY after_hours_declines ADD CONSTRAINT after_hours_declines_user_pair_unique UNIQUE (user_id, declined_user_id);
CREATE INDEX idx_after_hours_declines_created ON after_hours_declines USING btree (created_at);
COMMENT ON INDEX idx_after_hours_declines_created IS 'made by After Hours 0001';
CREATE INDEX idx_after_hours_declines_declined ON after_hours_declines USING btree (declined_user_id);
COMMENT ON INDEX idx_after_hours_declines_declined IS 'made by After Hours 0001';
CREATE INDEX idx_after_hours_declines_session ON after_hours_declines USING btree (session_id);
COMMENT ON INDEX idx_after_hours_declines_session IS 'made by After Hours 0001';
ALTER TABLE ONLY after_hours_declines ADD CONSTRAINT after_hours_declines_declined_user_id_fkey FOREIGN KEY (declined_user_id) REFERENCES users(id) ON DELETE CASCADE;
ALTER TABLE ONLY after_hours_declines ADD CONSTRAINT after_hours_declines_session_id_fkey FOREIGN KEY (session_id) REFERENCES after_hours_sessions(id) ON DELETE CASCADE;
ALTER TABLE ONLY after_hours_declines ADD CONSTRAINT after_hours_declines_user_id_fkey FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE CASCADE;


-- device_fingerprints

CREATE TABLE device_fingerprints (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    user_id character varying(255) NOT NULL,
    session_id uuid,
    device_id character varying(255),
    device_model character varying(100),
    platform character varying(20),
    created_at timestamp with time zone DEFAULT now()
);
COMMENT ON TABLE device_fingerprints IS 'made by After Hours 0001';
ALTER TABLE ONLY device_fingerprints ADD CONSTRAINT device_fingerprints_pkey PRIMARY KEY (id);
CREATE INDEX idx_device_fingerprints_session ON device_fingerprints USING btree (session_id);
COMMENT ON INDEX idx_device_fingerprints_session IS 'made by After Hours 0001';
CREATE INDEX idx_device_fingerprints_user ON device_fingerprints USING btree (user_id);
COMMENT ON INDEX idx_device_fingerprints_user IS 'made by After Hours 0001';
ALTER TABLE ONLY device_fingerprints ADD CONSTRAINT device_fingerprints_session_id_fkey FOREIGN KEY (session_id) REFERENCES after_hours_sessions(id) ON DELETE SET NULL;
ALTER TABLE ONLY device_fingerprints ADD CONSTRAINT device_fingerprints_user_id_fkey FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE CASCADE;


-- after_hours_untold

CREATE TABLE after_hours_untold (
    id bigint NOT NULL,
    tell_at timestamp with time zone NOT NULL,
    session_ids uuid[] NOT NULL
);
ALTER TABLE after_hours_untold ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME after_hours_untold_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
ALTER TABLE ONLY after_hours_untold ADD CONSTRAINT after_hours_untold_pkey PRIMARY KEY (id);
CREATE INDEX idx_after_hours_untold_tell ON after_hours_untold USING btree (tell_at);


-- after_hours_matches

CREATE TABLE after_hours_matches (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    session_id uuid NOT NULL,
    user_id_1 character varying(255) NOT NULL,
    user_id_2 character varying(255) NOT NULL,
    created_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP,
    expires_at timestamp with time zone NOT NULL,
    user1_save_vote boolean DEFAULT false,
    user2_save_vote boolean DEFAULT false,
    converted_to_match_id character varying(255),
    declined_by character varying(255),
    declined_at timestamp with time zone,
    session_id_2 uuid,
    respond_by timestamp with time zone,
    lasts_until timestamp with time zone,
    user1_accepted_at timestamp with time zone,
    user2_accepted_at timestamp with time zone,
    ended_at timestamp with time zone,
    ended_by character varying(255),
    end_reason character varying(20),
    announced_at timestamp with time zone DEFAULT statement_timestamp(),
    due_at timestamp with time zone DEFAULT statement_timestamp()
);
COMMENT ON TABLE after_hours_matches IS 'made by After Hours 0014';
COMMENT ON COLUMN after_hours_matches.session_id_2 IS 'made by After Hours 0014';
COMMENT ON COLUMN after_hours_matches.respond_by IS 'made by After Hours 0014';
COMMENT ON COLUMN after_hours_matches.lasts_until IS 'made by After Hours 0014';
COMMENT ON COLUMN after_hours_matches.user1_accepted_at IS 'made by After Hours 0014';
COMMENT ON COLUMN after_hours_matches.user2_accepted_at IS 'made by After Hours 0014';
COMMENT ON COLUMN after_hours_matches.ended_at IS 'made by After Hours 0014';
COMMENT ON COLUMN after_hours_matches.ended_by IS 'made by After Hours 0014';
COMMENT ON COLUMN after_hours_matches.end_reason IS 'made by After Hours 0014';
COMMENT ON COLUMN after_hours_matches.announced_at IS 'made by After Hours 0014';
COMMENT ON COLUMN after_hours_matches.due_at IS 'made by After Hours 0014';
ALTER TABLE ONLY after_hours_matches ADD CONSTRAINT after_hours_matches_pkey PRIMARY KEY (id);
ALTER TABLE ONLY after_hours_matches ADD CONSTRAINT after_hours_matches_session_id_user_id_1_user_id_2_key UNIQUE (session_id, user_id_1, user_id_2);
CREATE INDEX idx_after_hours_matches_due ON after_hours_matches USING btree (due_at) WHERE (due_at IS NOT NULL);
COMMENT ON INDEX idx_after_hours_matches_due IS 'made by After Hours 0014';
CREATE INDEX idx_after_hours_matches_expires ON after_hours_matches USING btree (expires_at, id);
COMMENT ON INDEX idx_after_hours_matches_expires IS 'made by After Hours 0014';
CREATE INDEX idx_after_hours_matches_session_2 ON after_hours_matches USING btree (session_id_2) WHERE (session_id_2 IS NOT NULL);
COMMENT ON INDEX idx_after_hours_matches_session_2 IS 'made by After Hours 0014';
CREATE INDEX idx_after_hours_matches_user_1 ON after_hours_matches USING btree (user_id_1, expires_at);
COMMENT ON INDEX idx_after_hours_matches_user_1 IS 'made by After Hours 0014';
CREATE INDEX idx_after_hours_matches_user_2 ON after_hours_matches USING btree (user_id_2, expires_at);
COMMENT ON INDEX idx_after_hours_matches_user_2 IS 'made by After Hours 0014';
ALTER TABLE ONLY after_hours_matches ADD CONSTRAINT after_hours_matches_declined_by_fkey FOREIGN KEY (declined_by) REFERENCES users(id) ON DELETE SET NULL;
ALTER TABLE ONLY after_hours_matches ADD CONSTRAINT after_hours_matches_session_id_fkey FOREIGN KEY (session_id) REFERENCES after_hours_sessions(id) ON DELETE CASCADE;
ALTER TABLE ONLY after_hours_matches ADD CONSTRAINT after_hours_matches_user_id_1_fkey FOREIGN KEY (user_id_1) REFERENCES users(id) ON DELETE CASCADE;
ALTER TABLE ONLY after_hours_matches ADD CONSTRAINT after_hours_matches_user_id_2_fkey FOREIGN KEY (user_id_2) REFERENCES users(id) ON DELETE CASCADE;


-- after_hours_search

CREATE TABLE after_hours_search (
    user_id character varying(255) NOT NULL,
    session_id uuid NOT NULL,
    key cube NOT NULL,
    wish cube NOT NULL,
    me cube NOT NULL,
    since timestamp with time zone NOT NULL,
    look_at timestamp with time zone,
    looked_at timestamp with time zone,
    told_at timestamp with time zone,
    match_id uuid
)
WITH (fillfactor='70', autovacuum_vacuum_threshold='2000', autovacuum_vacuum_scale_factor='0');
COMMENT ON TABLE after_hours_search IS 'made by After Hours 0014';
ALTER TABLE ONLY after_hours_search ADD CONSTRAINT after_hours_search_pkey PRIMARY KEY (user_id);
CREATE INDEX idx_after_hours_search_due ON after_hours_search USING btree (look_at) WHERE (look_at IS NOT NULL);
CREATE INDEX idx_after_hours_search_pool ON after_hours_search USING gist (cube(((((1048576)::double precision * floor((cube_ll_coord(key, 3) / (25000)::double precision))) + ((1024)::double precision * floor((cube_ll_coord(key, 2) / (25000)::double precision)))) + floor((cube_ll_coord(key, 1) / (25000)::double precision)))), key) WHERE (looked_at IS NOT NULL);
CREATE INDEX idx_after_hours_search_untold ON after_hours_search USING btree (looked_at) WHERE ((looked_at IS NOT NULL) AND (told_at IS NULL));
ALTER TABLE ONLY after_hours_search ADD CONSTRAINT after_hours_search_user_id_fkey FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE CASCADE;


-- after_hours_places

CREATE TABLE after_hours_places (
    id uuid NOT NULL,
    user_id character varying(255) NOT NULL,
    fuzzed_latitude numeric(10,8) NOT NULL,
    fuzzed_longitude numeric(11,8) NOT NULL,
    visits integer NOT NULL,
    last_seen date NOT NULL
)
WITH (fillfactor='90');
COMMENT ON TABLE after_hours_places IS 'made by After Hours 0016';
ALTER TABLE ONLY after_hours_places ADD CONSTRAINT after_hours_places_pkey PRIMARY KEY (id);
CREATE INDEX idx_after_hours_places_seen ON after_hours_places USING btree (last_seen, id);
CREATE INDEX idx_after_hours_places_user ON after_hours_places USING btree (user_id);
ALTER TABLE ONLY after_hours_places ADD CONSTRAINT after_hours_places_user_id_fkey FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE CASCADE;


-- after_hours_alembic_version

CREATE TABLE after_hours_alembic_version (
    version_num character varying(32) NOT NULL
);
ALTER TABLE ONLY after_hours_alembic_version ADD CONSTRAINT after_hours_alembic_version_pkc PRIMARY KEY (version_num);


-- Functions

CREATE FUNCTION after_hours_box(key cube, me cube, wish cube, metres double precision) RETURNS cube
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN cube(ARRAY[(cube_ll_coord(key, 1) - metres), (cube_ll_coord(key, 2) - metres), (cube_ll_coord(key, 3) - metres), (((4)::double precision * cube_ll_coord(wish, 1)) + ((ARRAY[2, 1, 2, 0])[(1 + (cube_ll_coord(me, 1))::integer)])::double precision), cube_ll_coord(wish, 2)], ARRAY[(cube_ll_coord(key, 1) + metres), (cube_ll_coord(key, 2) + metres), (cube_ll_coord(key, 3) + metres), ((((4)::double precision * cube_ur_coord(wish, 1)) + ((ARRAY[2, 2, 3, 2])[(1 + (cube_ll_coord(me, 1))::integer)])::double precision) + (0.99999)::double precision), (cube_ur_coord(wish, 2) + (0.99999)::double precision)]);

CREATE FUNCTION after_hours_erase_location() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
        BEGIN
            NEW.latitude := NULL; NEW.longitude := NULL; NEW.discovery_key := NULL; NEW.discovery_wish := NULL;
            RETURN NEW;
        END $$;

CREATE FUNCTION after_hours_gender(text) RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE lower($1) WHEN 'male'::text THEN 1 WHEN 'female'::text THEN 2 WHEN 'non-binary'::text THEN 3 ELSE 0 END;

CREATE FUNCTION after_hours_high(of cube, axis integer) RETURNS double precision
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN cube_ur_coord(of, axis);

CREATE FUNCTION after_hours_holds(outside cube, inside cube) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (outside OPERATOR(@>) inside);

CREATE FUNCTION after_hours_seeking(text) RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE lower($1) WHEN 'non-binary'::text THEN 0 WHEN 'male'::text THEN 1 WHEN 'female'::text THEN 3 ELSE 2 END;

CREATE FUNCTION after_hours_key(id uuid, latitude double precision, longitude double precision, gender text, age integer, seeking text) RETURNS cube
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN cube(cube(ARRAY[(((6371008.8)::double precision * cosd(latitude)) * cosd(longitude)), (((6371008.8)::double precision * cosd(latitude)) * sind(longitude)), ((6371008.8)::double precision * sind(latitude)), ((((4 * after_hours_gender(gender)) + after_hours_seeking(seeking)))::double precision + ((((('x'::text || "left"((id)::text, 4)))::bit(16))::integer)::double precision / (65536.0)::double precision))]), ((COALESCE(age, 18))::double precision + ((((('x'::text || "left"((id)::text, 4)))::bit(16))::integer)::double precision / (65536.0)::double precision)), ((COALESCE(age, 99))::double precision + ((((('x'::text || "left"((id)::text, 4)))::bit(16))::integer)::double precision / (65536.0)::double precision)));

CREATE FUNCTION after_hours_low(of cube, axis integer) RETURNS double precision
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN cube_ll_coord(of, axis);

CREATE FUNCTION after_hours_match_locks() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    BEGIN
        PERFORM FROM public.users WHERE id IN (NEW.user_id_1, NEW.user_id_2) ORDER BY id FOR NO KEY UPDATE;
        RETURN NEW;
    END $$;

CREATE FUNCTION after_hours_match_made() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_nestloop TO 'on'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET enable_seqscan TO 'off'
    AS $$
    DECLARE
        moment timestamptz := clock_timestamp();
    BEGIN
        IF current_setting('transaction_isolation') <> 'read committed' THEN -- it would not see what it waited for
            RAISE EXCEPTION 'matches are inserted at READ COMMITTED only' USING ERRCODE = 'feature_not_supported';
        END IF;
        -- Two inserts for one member wait for each other here, and the second sees the match of the first.
        PERFORM FROM public.users WHERE id IN (
            SELECT unnest(ARRAY[user_id_1, user_id_2]) FROM added WHERE declined_by IS NULL AND expires_at > moment
        ) ORDER BY id FOR NO KEY UPDATE;
        moment := clock_timestamp();
        IF EXISTS (
            SELECT FROM added CROSS JOIN LATERAL (VALUES (user_id_1), (user_id_2)) AS member (id)
            WHERE added.declined_by IS NULL AND added.expires_at > moment AND (
                (SELECT true FROM public.after_hours_matches AS other WHERE other.user_id_1 = member.id AND other.id <> added.id
                    AND other.expires_at > moment AND other.declined_by IS NULL LIMIT 1)
                OR (SELECT true FROM public.after_hours_matches AS other WHERE other.user_id_2 = member.id AND other.id <> added.id
                    AND other.expires_at > moment AND other.declined_by IS NULL LIMIT 1))
        ) THEN
            RAISE EXCEPTION 'a member of this match has a live match' USING ERRCODE = 'unique_violation';
        END IF;
        UPDATE public.after_hours_search AS search SET match_id = made.id, look_at = NULL, looked_at = NULL
            FROM (
                SELECT id, unnest(ARRAY[user_id_1, user_id_2]) AS user_id FROM added
                WHERE declined_by IS NULL AND expires_at > moment
            ) AS made
            WHERE search.user_id = made.user_id;
        RETURN NULL;
    END $$;

CREATE FUNCTION after_hours_match_over() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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
        UPDATE public.after_hours_search SET match_id = NULL, looked_at = NULL, told_at = NULL, since = moment,
            look_at = CASE WHEN user_id = decliner
                THEN date_trunc('second', moment + half_minute + interval '999999 microseconds') ELSE moment END
            WHERE user_id IN (OLD.user_id_1, OLD.user_id_2) AND match_id = OLD.id;
        RETURN coalesce(NEW, OLD);
    END $$;

CREATE FUNCTION after_hours_metres(a cube, b cube) RETURNS double precision
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (a OPERATOR(<->) b);

CREATE FUNCTION after_hours_preferences_changed() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
    BEGIN
        UPDATE public.after_hours_sessions SET discovery_key = NULL
            WHERE ended_at IS NULL AND user_id = coalesce(NEW.user_id, OLD.user_id)
                AND (discovery_key IS NULL OR discovery_wish::text IS DISTINCT FROM public.after_hours_wish(
                    NEW.seeking_gender, NEW.min_age, NEW.max_age, NEW.max_distance_km)::text);
        RETURN NULL;
    END $$;

CREATE FUNCTION after_hours_reach(wish cube) RETURNS double precision
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN cube_ur_coord(wish, 3);

CREATE FUNCTION after_hours_search_follow() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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
        SELECT match_id INTO taken FROM public.after_hours_search WHERE user_id = NEW.user_id AND session_id = NEW.id;
        IF NOT FOUND THEN -- a session of another service, or matching is off: the match may be another service's
            IF NEW.ended_at IS NOT NULL THEN
                UPDATE public.after_hours_matches SET expires_at = clock_timestamp(), ended_by = NEW.user_id, end_reason = 'left'
                    WHERE user_id_1 = NEW.user_id AND declined_by IS NULL AND expires_at > clock_timestamp();
                UPDATE public.after_hours_matches SET expires_at = clock_timestamp(), ended_by = NEW.user_id, end_reason = 'left'
                    WHERE user_id_2 = NEW.user_id AND declined_by IS NULL AND expires_at > clock_timestamp();
            END IF;
            RETURN NULL;
        END IF;
        -- First the match, as a decline does, then the search; a round that is matching the member is waited for there,
        -- and then it is the turn of its match.
        FOR turn IN 1..2 LOOP
            before := taken;
            IF NEW.ended_at IS NOT NULL THEN
                UPDATE public.after_hours_matches SET expires_at = clock_timestamp(), ended_by = NEW.user_id, end_reason = 'left'
                    WHERE id = taken AND ended_at IS NULL AND declined_by IS NULL AND expires_at > clock_timestamp();
                DELETE FROM public.after_hours_search WHERE user_id = NEW.user_id AND session_id = NEW.id RETURNING match_id INTO taken;
            ELSE
                UPDATE public.after_hours_matches AS match SET expires_at = least(
                        coalesce(lasts_until, created_at + 10 * minute), NEW.expires_at,
                        (SELECT s.expires_at FROM public.after_hours_sessions AS s WHERE s.ended_at IS NULL AND s.user_id =
                            CASE NEW.user_id WHEN user_id_1 THEN user_id_2 ELSE user_id_1 END))
                    WHERE id = taken AND ended_at IS NULL AND declined_by IS NULL
                        AND match.expires_at > clock_timestamp() AND NEW.expires_at <> OLD.expires_at;
                UPDATE public.after_hours_search SET key = NEW.discovery_key, wish = NEW.discovery_wish,
                    looked_at = CASE WHEN match_id IS NOT NULL OR NOT is_anew THEN looked_at END,
                    told_at = CASE WHEN match_id IS NOT NULL OR NOT is_anew THEN told_at END,
                    look_at = coalesce(look_at, CASE WHEN match_id IS NULL AND is_anew THEN moment END)
                    WHERE user_id = NEW.user_id RETURNING match_id INTO taken;
            END IF;
            EXIT WHEN taken IS NOT DISTINCT FROM before;
        END LOOP;
        RETURN NULL;
    END $$;

CREATE FUNCTION after_hours_self(gender text, age integer) RETURNS cube
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN cube((ARRAY[after_hours_gender(gender), COALESCE(age, 18)])::double precision[], (ARRAY[after_hours_gender(gender), COALESCE(age, 99)])::double precision[]);

CREATE FUNCTION after_hours_set_key() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
    DECLARE
        main record;
        wish record;
    BEGIN
        IF TG_OP = 'INSERT' AND NEW.discovery_key IS NOT NULL AND NEW.discovery_wish IS NOT NULL THEN
            RETURN NEW;
        END IF;
        SELECT gender, age INTO main FROM public.profiles WHERE user_id = NEW.user_id;
        SELECT seeking_gender, min_age, max_age, max_distance_km INTO wish
            FROM public.after_hours_preferences WHERE user_id = NEW.user_id;
        NEW.discovery_key := public.after_hours_key(
            NEW.id, NEW.fuzzed_latitude, NEW.fuzzed_longitude, main.gender, main.age, wish.seeking_gender);
        NEW.discovery_wish := public.after_hours_wish(
            wish.seeking_gender, wish.min_age, wish.max_age, wish.max_distance_km);
        RETURN NEW;
    END $$;

CREATE FUNCTION after_hours_wish(seeking text, min_age integer, max_age integer, max_km integer) RETURNS cube
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN cube((ARRAY[CASE WHEN (COALESCE(lower(seeking), 'any'::text) = 'any'::text) THEN 0 ELSE after_hours_gender(seeking) END, COALESCE(min_age, 18), 0])::double precision[], ARRAY[(CASE WHEN (COALESCE(lower(seeking), 'any'::text) = 'any'::text) THEN 3 ELSE after_hours_gender(seeking) END)::double precision, (COALESCE(max_age, 99))::double precision, ((((2)::numeric * 6371008.8))::double precision * sin(((((COALESCE(max_km, 10) * 1000))::numeric / ((2)::numeric * 6371008.8)))::double precision))]);


-- Triggers

CREATE TRIGGER after_hours_erase_location BEFORE INSERT OR UPDATE ON after_hours_sessions FOR EACH ROW WHEN (((new.ended_at IS NOT NULL) AND ((new.latitude IS NOT NULL) OR (new.longitude IS NOT NULL) OR (new.discovery_key IS NOT NULL) OR (new.discovery_wish IS NOT NULL)))) EXECUTE FUNCTION after_hours_erase_location();

CREATE TRIGGER after_hours_match_locks BEFORE INSERT ON after_hours_matches FOR EACH ROW WHEN ((new.session_id_2 IS NULL)) EXECUTE FUNCTION after_hours_match_locks();

CREATE TRIGGER after_hours_match_made AFTER INSERT ON after_hours_matches REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION after_hours_match_made();

CREATE TRIGGER after_hours_match_over BEFORE DELETE OR UPDATE OF declined_by, expires_at ON after_hours_matches FOR EACH ROW EXECUTE FUNCTION after_hours_match_over();

CREATE TRIGGER after_hours_preferences_changed AFTER INSERT OR DELETE OR UPDATE ON after_hours_preferences FOR EACH ROW EXECUTE FUNCTION after_hours_preferences_changed();

CREATE TRIGGER after_hours_search_follow AFTER UPDATE OF ended_at, expires_at, discovery_key, discovery_wish ON after_hours_sessions FOR EACH ROW WHEN (((old.ended_at IS NULL) AND ((new.ended_at IS NULL) OR (new.ended_at < new.expires_at)))) EXECUTE FUNCTION after_hours_search_follow();

CREATE TRIGGER after_hours_set_key BEFORE INSERT OR UPDATE OF discovery_key, fuzzed_latitude, fuzzed_longitude ON after_hours_sessions FOR EACH ROW WHEN ((new.ended_at IS NULL)) EXECUTE FUNCTION after_hours_set_key();
