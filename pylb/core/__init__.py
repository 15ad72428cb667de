"""Values and decisions.

Nothing here does I/O or knows asyncio, sockets, HTTP, YAML or logging; the clock and randomness are arguments.
Every value is frozen: a change makes a new one, so anybody with a reference may go on reading it.
A wrong argument from outside raises `errors.Refused`; a wrong argument from pylb's own code is a bug and raises as one.
"""
