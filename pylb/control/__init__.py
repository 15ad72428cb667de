"""The single writer: all calls that change who serves what are put in one order, and each gets one answer.

It composes tables and passes them to a `Sink`; it never touches a client's bytes and imports nothing of forward/.
An answered change is in force, and on disk unless the answer says otherwise.
"""
