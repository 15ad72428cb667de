"""The interfaces for callers from outside: webhook, read-only admin pages, metrics listener and control socket.

Only `server`, `exchange` and `protocol` know aiohttp; the other modules receive a `Call` and return an `Answer` (both in
`types`). A refusal is raised as `core.errors.Refused`, and one table turns it into a status (`answers`). This package decides
nothing itself: it asks control.

listener         opens the sockets of the HTTP listeners; tls: their certificate
server           an HTTP listener for the open Internet; connections: whom it cuts off when there are too many
protocol         aiohttp's HTTP/1.1 with our bounds; exchange: to a `Call` and from an `Answer`
client_address   who calls: its address behind trusted proxies, and its secret

webhook          the registration API, whoami, and the legacy route; openapi: its description
admin            the read-only pages; sessions: queries for sessions; views: what all JSON lists have in common
control_socket   changes from this machine; control_client: asks for them
unix             a socket that only root and pylb's user may use
"""
