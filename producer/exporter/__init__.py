"""The fleet's metrics in Prometheus' form: read at the time of the scrape, held nowhere."""
