"""The Celery consumer of one lane of one device."""
