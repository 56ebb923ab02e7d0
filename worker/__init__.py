"""Takes work out: guards, device processes, consumers and the collector. Never imports producer."""
