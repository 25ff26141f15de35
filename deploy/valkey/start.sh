#!/bin/sh
# Starts Valkey with the users of users.acl and no other. Only the passwords' hashes are written to disk.
# Where there are two (compose.zones.yaml), REPLICATION_PASSWORD is that of a replica and of the sentinels. Arguments are
# more options.
set -e
sha256() {
    printf %s "$1" | sha256sum | cut -d ' ' -f 1
}
folder=$(dirname "$0")
sed "s/SERVICE_SHA256/$(sha256 "$SERVICE_PASSWORD")/; s/CHAT_SHA256/$(sha256 "$CHAT_PASSWORD")/" \
    "$folder/users.acl" > /tmp/users.acl
if [ -n "${REPLICATION_PASSWORD-}" ]; then
    sed "s/REPLICATION_SHA256/$(sha256 "$REPLICATION_PASSWORD")/" "$folder/zones.acl" >> /tmp/users.acl
    printf 'masteruser replication\nmasterauth %s\n' "$REPLICATION_PASSWORD" > /tmp/replication.conf
    set -- --include /tmp/replication.conf "$@"
fi
unset SERVICE_PASSWORD CHAT_PASSWORD REPLICATION_PASSWORD
# Losing the data delays timers by up to a minute; an append-only file, synced each second, avoids even that.
# Never evict: an evicted timer would be late.
exec docker-entrypoint.sh valkey-server --aclfile /tmp/users.acl --appendonly yes --appendfsync everysec --save "" \
    --maxmemory-policy noeviction "$@"
