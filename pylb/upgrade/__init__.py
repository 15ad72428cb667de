"""One pylb follows another: listening sockets, state and counters pass from the old process to the new one."""
