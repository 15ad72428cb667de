"""Prometheus: pylb's own metrics, read from counters and views at the moment of a scrape."""
