"""Redis and Postgres: configured ones, or embedded ones where none are configured."""
