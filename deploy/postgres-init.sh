#!/bin/sh
# Mem0's role and its two databases, beside memsvc's own. PostgreSQL's image runs this once, when its volume is new.
set -eu

psql --set ON_ERROR_STOP=1 --set password="$MEM0_DATABASE_PASSWORD" --username "$POSTGRES_USER" --dbname postgres <<'SQL'
CREATE ROLE mem0 LOGIN PASSWORD :'password';
CREATE DATABASE mem0 OWNER mem0;
CREATE DATABASE mem0_app OWNER mem0;
\connect mem0
CREATE EXTENSION vector;
SQL
