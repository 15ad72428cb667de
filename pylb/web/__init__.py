"""The interfaces for callers from outside: webhook, read-only admin pages, metrics listener and control socket.

Only `server`, `exchange` and `protocol` know aiohttp; the other modules receive a `Call` and return an `Answer` (both in
`types`). A refusal is raised as `core.errors.Refused`, and one table turns it into a status (`answers`). This package decides
nothing itself: it asks control.
"""
