"""Several balancers that share their registrations through etcd. Loaded by app/cluster.py, where the config asks for it.

What to write, what to serve and who owns a port is decided in core/merge. This folder turns etcd's bytes into its values and
back, talks to etcd, and brings what core/merge says and what control has in force together; it decides nothing about
registrations.

gateway        etcd's HTTP/JSON gateway: what it is asked and what it answers, as values; no I/O
etcd           one call after the other, to one of several endpoints
keys           the names of keys and the encoding of values
memory         what a balancer remembers over a restart, as JSON; disk: its file, and whose presence a start continues
sync           the loop: list, watch, write
shared         between control (control/sharing.py) and core/merge; registrations: from one to the other, and this
               balancer's own scope; overview: what an operator sees
examination    what `pylb doctor` asks etcd
"""
