"""Several processes: the fleet of workers as main sees it, and the channel between main and a worker.

A worker runs `worker` and `main_connection`. It shares `channel` and `messages` with main; none of these four imports asyncio.
The rest is main's.
"""
