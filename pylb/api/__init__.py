"""What the CLI and the control socket can ask of a running pylb, and what can be changed from this machine, as plain values.

verbs                           all of it, by name
routes, status, explain, plan   the answers that take more than a line to make
cluster                         the balancers that share this table
completion                      what a shell completes with
"""
