"""pylb: a load balancer of TCP and UDP for one fixed-IP machine in front of Kubernetes NodePorts. This is its map.

A *phone-home* in a pod says "listen on 443 and send it to my node's port 30443"; pylb opens the port and forwards, at once,
without a restart, without touching any other connection.

Words
    frontend      a listening port and its policy           server   one ip:port that may receive its connections
    registration  what a phone-home said, under a lease     table    the immutable picture of all frontends and servers
    session       one client connection and its server's: two halves, downstream and upstream
    flow          what a session is for UDP: one client's datagrams, and the connected socket on which they go to a server

Folders, by layer: each imports only what is below it (pyproject.toml holds this as contracts)
    cli             what a person types; asks the running pylb over its control socket
    app             one running pylb: builds the parts, starts them in order, stops them in reverse; phases, settings
    upgrade         one pylb follows another: sockets, state and counters pass from the old process to the new one
    haproxy         HAProxy's dialect: import of haproxy.cfg, the runtime socket, `show stat`, its exporter's names
    api             what the CLI and the control socket may ask, as plain values
    statuspage      the page, and the stream of what changed
    web             HTTP: the webhook, the admin pages, the control socket           workers    several processes that forward
    cluster         what several balancers share, through etcd; loaded only with cluster.etcd
    metrics         pylb's own metrics
    config          pylb.yaml, parsed once into frozen values     host    the kernel and systemd     logs    lines and messages
    control         who holds which port, since when, for how long; what is kept on disk
    forward         the engine: the only code that touches a client's bytes (a sibling of control: they meet in app)
    core            values and decisions: no I/O, no clock, no randomness

One call's way: web/webhook → control/calls (validate, bind, make durable, swap) → engine.apply(table) → the answer.
One byte's way: epoll → forward/engine → forward/relay: recv, send; splice when it comes in bulk.
A FIN's way: relay reads 0 behind the last byte → the table in core/session → forward/lifecycle half-closes the other side.
A signal's way: app/app → app/phases (what it means in this phase) → app/app does it; what SIGHUP reads is in app/reload.
Who may open a port: core/auth (the ports of its token), core/conflicts (ports that somebody else holds).
How long a lease lasts: core/lease (a native call names its TTL, that of a legacy call is learned).

What pylb does not do: terminate TLS, speak HTTP to your users, keep your DNS.
This package imports nothing.
"""

DISTRIBUTION = "pylb-balancer"  # what pip calls it: `pylb` on PyPI is another project
__version__ = "0.2.0.dev0"
