"""phonehome tells pylb, from inside a pod, which ports to open and where to send them.

    settings   the environment, once, into frozen values; every mistake is listed at once
    message    what is sent to pylb and what it answers: pure
    sanitize   makes text from the other side safe for a log: pure
    schedule   when to call next: pure; clock and randomness are arguments
    outcome_log  which events deserve a line in the log: pure
    pin        which public key a certificate has: pure, strict DER
    client     one HTTP request with a deadline: the only module that uses the network
    credentials  token, pins and authorities of one load balancer, read again from their files
    runner     a loop per load balancer, all with the same goal; the goodbye
    preflight  whether the app answers yet (PYLB_WAIT)
    output     what the process prints
    controller/  a phone-home for a whole cluster, beside and not among the rest
    drain_socket  how `phonehome drain` reaches the running process

Standard library only, nothing of pylb, no asyncio and no urllib.request: it must fit into 25 MiB beside the app
and run as one file on any stock Python image from 3.9 on.
"""

__version__ = "0.2.0.dev0"
