"""Values and decisions.

Nothing here does I/O or knows asyncio, sockets, HTTP, YAML or logging; the clock and randomness are arguments.
Every value is frozen: a change makes a new one, so whoever holds a reference may read it for ever.
A wrong argument of an outsider raises `errors.Refused`; a wrong argument of our own is a bug and raises as such.
"""
