"""One pylb follows another: listening sockets, flows of UDP, state and counters pass from the old process to the new one.

`protocol` is what the two say to each other. The old one: `handover`, `successor` (the new process), `leaving` (what it gives
away and takes back). The new one: `arriving`. Both: `sockets`, `processes`.
"""
