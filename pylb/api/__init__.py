"""What the CLI and the control socket can ask of a running pylb, and what can be changed from this machine, as plain values."""
