#!/bin/sh
# Run once by PostgreSQL's image, when its volume is empty: lets a standby replicate (compose.zones.yaml).
set -e
if [ -z "${REPLICATION_PASSWORD-}" ]; then
    exit 0
fi
psql --no-psqlrc --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
\getenv replication_password REPLICATION_PASSWORD
CREATE ROLE replication LOGIN REPLICATION PASSWORD :'replication_password';
-- What pg_rewind reads of the new primary.
GRANT EXECUTE ON FUNCTION pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean), pg_read_binary_file(text),
    pg_read_binary_file(text, bigint, bigint, boolean) TO replication;
SQL
echo 'host replication replication all scram-sha-256' >> "$PGDATA/pg_hba.conf"
