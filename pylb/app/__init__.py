"""One running pylb: the composition root and its parts.

`app` builds the parts, starts them in order and stops them in reverse; each part is a class that is given what it needs.
`phases` says what a signal means in each phase. Only `forwarding` knows whether this process forwards or workers do.

run              `pylb run` as a process; errors: why it does not start
settings         config, tokens and certificates in force; tokens: where each token comes from
reload           what is read again: at SIGHUP, and when secrets, certificates or this machine's addresses change
operations       what the control socket and the signals may ask, and when
endpoints        webhook, admin and metrics ports, and the two Unix sockets
engine_observer  from the engine to control and the log; reporting: metrics, page, statistics, events
background       the tasks of this process; heartbeat: loop delay, signs of life for systemd
cluster          several balancers with one table, if the config asks for it
descriptors      how file descriptors are divided; welcome: the banner and the first steps
upgrade          how a new process starts and an old one ends; shutdown: the end of the service
"""
