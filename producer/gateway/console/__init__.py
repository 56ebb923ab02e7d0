"""The console: one page for those who decide and those who operate."""
