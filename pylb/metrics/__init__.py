"""Prometheus: pylb's own metrics, read from counters and views at the moment of a scrape.

collector    every metric; a new one goes here, and its count where it happens
flows        those that only frontends of UDP have
cluster      those of several balancers with one table
process      what the kernel reports about pylb's processes
families     the collector's form for prometheus-client; exposition: the text of a scrape
"""
