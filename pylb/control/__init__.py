"""The single writer: every call that changes who serves what has one order and one answer.

It composes tables and hands them to a `Sink`; it never touches a client's bytes and imports nothing of forward/.
What a caller is told is in force, and on disk unless the answer says otherwise.
"""
