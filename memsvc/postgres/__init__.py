"""Django's PostgreSQL backend with a bounded pool of connections: DATABASES ENGINE "memsvc.postgres"."""
