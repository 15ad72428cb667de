"""What the outside sees of the work: metrics read at a scrape, one line per session, messages.

Nothing here runs on the hot path and nothing blocks the loop: a record is put into a bounded queue, a thread writes it.
What does not fit is dropped and counted, never waited for.
"""
