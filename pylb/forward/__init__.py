"""The only code that touches a client's bytes.

One engine owns one edge-triggered epoll and whatever hangs in it; it imports no asyncio and reads no config.
Outcomes are values here, not exceptions; whoever opens a descriptor closes it. It never imports control.
"""
