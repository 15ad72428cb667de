"""Several processes: the fleet of workers as main sees it, and the channel between main and a worker.

`channel`, `messages` and `link` run in both processes and import neither asyncio nor a third party; the rest is main's.
"""
