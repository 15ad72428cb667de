"""One line per session, and pylb's own messages: formats, and writers that never delay the loop.

session_log    the line of a session, made in the loop; formats: its text
async_writer   the thread that writes; targets: a descriptor, a file, a syslog
messages       pylb's own messages on stderr
"""
