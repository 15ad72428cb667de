"""The kernel and systemd: what this machine is and what it says. Nothing here knows of frontends or registrations."""
