"""Puts work in and shows what came out. Never imports worker or torch."""
