"""What outlives a restart: the snapshot, the history of tables, and the thread that waits for the disk.

store           the snapshot file, whole or not at all; snapshot: its payload
entries         the entry of a registration, there and in etcd; needs: what serving one requires
table_history   what each generation of the table changed
places          where the config and the state directory are
disk            the thread that waits for the disk; files: reading, atomic writing, damaged files
"""
