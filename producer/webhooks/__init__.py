"""Webhooks: signs the outbox's messages and sends each until it is received."""
