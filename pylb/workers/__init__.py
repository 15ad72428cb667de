"""Several processes: the fleet of workers as main sees it, and the channel between main and a worker.

A worker runs `worker` and `main_connection`. It shares `channel` and `messages` with main; none of these four imports asyncio.
The rest is main's.

fleet        all workers as control sees them; sink: takes control's tables; tables: those tables in pieces, as workers get them
supervisor   starts and replaces workers; process: one of them; archive: their code, in memory since the start
requests     questions to all workers; totals: the sum of their counters
in_process   the engine in main's own loop (`workers: 0`)
sampler      once a second, the counts of all processes that forward
"""
