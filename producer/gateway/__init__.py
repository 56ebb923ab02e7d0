"""The HTTP gateway: items in over HTTP, verdicts out. Everything about the web is in here and nowhere else."""
