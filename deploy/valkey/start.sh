#!/bin/sh
# Starts Valkey with the users of users.acl and no other. What is written to the disk are the passwords' hashes.
set -e
sha256() {
    printf %s "$1" | sha256sum | cut -d ' ' -f 1
}
folder=$(dirname "$0")
sed "s/SERVICE_SHA256/$(sha256 "$SERVICE_PASSWORD")/; s/CHAT_SHA256/$(sha256 "$CHAT_PASSWORD")/" \
    "$folder/users.acl" > /tmp/users.acl
unset SERVICE_PASSWORD CHAT_PASSWORD
# Losing it costs a minute of punctual timers; a file of commands, synced each second, spares even that.
# Full is full: a timer that is thrown out would be a timer that is late.
exec docker-entrypoint.sh valkey-server --aclfile /tmp/users.acl --appendonly yes --appendfsync everysec --save "" \
    --maxmemory-policy noeviction
