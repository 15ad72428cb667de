"""Several balancers that share their registrations through etcd. Nothing imports it yet.

What to write, what to serve and who owns a port is decided in core/merge. This folder turns etcd's bytes into its values and
back, and talks to etcd; it decides nothing about registrations.

gateway   etcd's HTTP/JSON gateway: what it is asked and what it answers, as values; no I/O
etcd      one call after the other, to one of several endpoints
keys      the names of keys and the encoding of values
memory    what a balancer remembers over a restart, as JSON
sync      the loop: list, watch, write
"""
