"""What outlives a restart: the snapshot, the history of tables, and the thread that waits for the disk."""
