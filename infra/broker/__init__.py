"""Celery on Redis: the application, its queues, delivery settings, dead letters and back-pressure."""
