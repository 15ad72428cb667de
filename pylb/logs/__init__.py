"""One line per session, and pylb's own messages: formats, and writers that never delay the loop."""
