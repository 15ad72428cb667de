"""Several processes: the fleet of workers as main sees it, and the channel between the two.

`channel`, `messages` and `link` are in both processes and import neither asyncio nor a third party; the rest is main's.
"""
