"""The only code that touches a client's bytes.

One engine owns one edge-triggered epoll and everything registered in it. It imports no asyncio and reads no config.
Outcomes are values here, not exceptions. Whoever opens a descriptor closes it. This package never imports control.
"""
