"""What the CLI and the control socket may ask of a running pylb, and what may be changed from this machine, as plain values."""
