"""What a person types. Asks the running pylb over its control socket and prints; decides nothing.

main      all commands; each has the module of its name: routes, sessions, explain, status, history, plan, ctl, standby,
          cluster, doctor, demo
client    asks the running pylb; instance: finds the one that a config belongs to
program   verbs in groups, and how a run ends; completion: what a shell completes; progress: what is being waited for
tables    how everything is written; session_trace: a connection in words

tokens (joins: the forms in which a token is given to an app), importing (`pylb import`), forward (`pylb run --listen`)
install, uninstall: the systemd service; installed: what is on the machine
"""
