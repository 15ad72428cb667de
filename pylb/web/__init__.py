"""What the outside calls: the webhook, the read-only admin pages, the metrics listener and the admin socket.

HTTP ends in `server`: above it a request is a `Call`, what is said to it an `Answer` (both in `call`), no aiohttp.
A refusal is raised as `core.errors.Refused` and becomes a status in one table (`answers`). Control decides, not web.
"""
