"""The kernel and systemd: what this machine is, and what it reports. Nothing here knows about frontends or registrations."""
