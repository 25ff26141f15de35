#!/bin/sh
# Starts PostgreSQL as the standby of $PRIMARY; copies that first if the volume is empty.
set -e
source="host=$PRIMARY user=replication password=$REPLICATION_PASSWORD application_name=standby"
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    until pg_isready --quiet --host "$PRIMARY"; do
        sleep 1
    done
    pg_basebackup --pgdata "$PGDATA" --dbname "$source" --checkpoint fast --write-recovery-conf
fi
unset REPLICATION_PASSWORD
exec docker-entrypoint.sh postgres -c wal_log_hints=on -c wal_keep_size=512MB
