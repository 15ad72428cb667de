"""One line per session, and the messages of pylb itself: formats, and writers that never hold up the loop."""
