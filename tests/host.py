"""The host's database as we find it: its own tables, and those of the Node service with what they hold."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
NODE = (ROOT / "tests/host_schema.sql").read_text()
HOST = NODE.partition("\n\n")[0]
GRANTS = (ROOT / "deploy/grants.sql").read_text()
PASSWORD = "only-for-this-server"  # of the roles after_hours and node
HOST_DATA = """
    INSERT INTO users (id, provider, email, id_verified, id_verified_at, after_hours_consent)
        SELECT 'u' || n, 'apple', n || '@example.org', n % 2 = 0, now(), nullif(n, 3) > 1
        FROM generate_series(1, 6) AS n;
    INSERT INTO profiles (user_id, name, age, bio, photos, gender)
        SELECT id, 'Ö ''' || id, 17 + length(id), 'bio', '{a,b}', 'whatever' FROM users;
    INSERT INTO user_subscriptions (user_id, is_active, platform, expires_at) SELECT id, true, 'ios', now() FROM users;
    INSERT INTO blocks (id, user_id, blocked_user_id) VALUES ('b', 'u1', 'u2');
    INSERT INTO matches (id) VALUES ('m');
"""
# Live (u1), overdue by a minute and by a month (u2, u3), ended early and late (u4, u5); expiries with fractions.
NODE_DATA = (
    HOST_DATA
    + """
    INSERT INTO after_hours_profiles (user_id, photo_url, photo_hash) SELECT id, 'key/' || id, 'abc' FROM users;
    INSERT INTO after_hours_preferences (user_id, interests, sexual_orientation, min_age)
        SELECT id, '{jazz}', nullif('Gay', CASE id WHEN 'u1' THEN 'Gay' END), 18 FROM users;
    INSERT INTO after_hours_sessions
        (user_id, started_at, expires_at, ended_at, latitude, longitude, fuzzed_latitude, fuzzed_longitude)
        SELECT id, expiry - interval '30 minutes', expiry, ending, -89.12345678, -179.12345678, 1.5, 2.5
        FROM (VALUES ('u1', date_trunc('second', now()) + interval '10 minutes 123456 microseconds', NULL),
                     ('u2', now() - interval '1 minute 1 microsecond', NULL),
                     ('u3', now() - interval '30 days', NULL),
                     ('u4', now(), now() - interval '5 minutes'),
                     ('u5', now() - interval '1 hour', now() - interval '59 minutes')) AS v (id, expiry, ending);
    INSERT INTO after_hours_declines (session_id, user_id, declined_user_id, decline_count)
        SELECT id, user_id, 'u6', 2 FROM after_hours_sessions;
    INSERT INTO after_hours_matches (session_id, user_id_1, user_id_2, expires_at, converted_to_match_id)
        SELECT id, user_id, 'u6', expires_at, 'm' FROM after_hours_sessions;
    INSERT INTO after_hours_messages (match_id, sender_id, text) SELECT id, user_id_1, 'hi' FROM after_hours_matches;
    INSERT INTO device_fingerprints (user_id, session_id, device_id, platform)
        SELECT user_id, id, 'd', 'web' FROM after_hours_sessions UNION ALL SELECT 'u1', NULL, NULL, NULL;
    INSERT INTO banned_photo_hashes (photo_hash) VALUES ('abc');
"""
)
