#!/bin/sh
# Starts one of three sentinels, which watch the Valkey that is primary at first, and promote the other one.
set -e
umask 077
cat > /data/sentinel.conf <<CONF
port 26379
protected-mode no
sentinel resolve-hostnames yes
sentinel announce-hostnames yes
sentinel announce-ip $(hostname)
sentinel monitor after-hours valkey 6379 2
sentinel auth-user after-hours sentinel
sentinel auth-pass after-hours $REPLICATION_PASSWORD
sentinel down-after-milliseconds after-hours 3000
sentinel failover-timeout after-hours 10000
user default on >$REPLICATION_PASSWORD ~* &* +@all
sentinel sentinel-user default
sentinel sentinel-pass $REPLICATION_PASSWORD
CONF
chown valkey /data/sentinel.conf
unset REPLICATION_PASSWORD
exec docker-entrypoint.sh valkey-server /data/sentinel.conf --sentinel
