#!/bin/sh
# Run once by PostgreSQL's image, when its volume is empty. Creates two roles without superuser rights: the owner, who
# migrates and grants, and the service's, which may do only what deploy/grants.sql says.
set -e
psql --no-psqlrc --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
\getenv owner_password OWNER_PASSWORD
\getenv service_password SERVICE_PASSWORD
\getenv database POSTGRES_DB
CREATE ROLE after_hours_owner LOGIN PASSWORD :'owner_password';
CREATE ROLE after_hours LOGIN PASSWORD :'service_password';
ALTER DATABASE :"database" OWNER TO after_hours_owner;
REVOKE ALL ON DATABASE :"database" FROM PUBLIC;
GRANT CONNECT ON DATABASE :"database" TO after_hours;
SQL
