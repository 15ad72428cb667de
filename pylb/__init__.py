"""pylb: a TCP load balancer for one fixed-IP machine in front of Kubernetes NodePorts. This is its map.

A *phone-home* in a pod says "listen on 443 and send it to my node's port 30443"; pylb opens the port and forwards, at once,
without a restart, without touching any other connection.

Words
    frontend      a listening port and its policy           server   one ip:port that may receive its connections
    registration  what a phone-home said, under a lease     table    the immutable picture of all frontends and servers
    session       one client connection and its server's: two halves, downstream and upstream

Layers, upper ones import lower ones, never the reverse (pyproject.toml holds this as contracts)
    cli, app        the composition root: builds the parts, starts them in order, stops them in reverse; worker is another
    upgrade         one pylb follows another
    config          pylb.yaml, parsed once into frozen values
    web, observe    what the outside calls; what the outside sees          workers   several processes that forward
    control         who holds which port, since when, for how long; what is kept on disk     | siblings: they meet
    forward         the engine: the only code that touches a client's bytes                  | in app.py
    core            values and decisions: no I/O, no clock, no randomness

One call's way: web/webhook → control/registry (validate, bind, make durable, swap) → engine.apply(table) → the answer.
One byte's way: epoll → forward/engine → forward/relay: recv, send; splice when it comes in bulk.

What pylb does not do: terminate TLS, speak HTTP to your users, balance UDP, keep your DNS.
This package imports nothing.
"""

__version__ = "0.1.0"
