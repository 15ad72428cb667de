"""The single writer: all calls that change who serves what are put in one order, and each gets one answer.

It composes tables and passes them to a `Sink`; it never touches a client's bytes and imports nothing of forward/.
An answered change is in force, and on disk unless the answer says otherwise.

registry            control as the rest of pylb sees it: start and stop, views, and the three ways to change something:
calls               what phone-homes and old containers ask for
operator_commands   what `pylb ctl` and the control socket ask for
rules               the config and its tokens: reloads, this machine's addresses, plans

new_registration    from a call to the registration that it asks for, checked against the token's scope
registrar           how a registration comes and goes; replaced_tokens: tokens that take over those of others
writer              the one writer: decides, opens ports, makes durable, publishes, answers
publisher           from the claims to the table in force, in steps
state               the values that all of these share, and how they change; desired_state: what calls are checked against
persistence         what a start finds on disk, and when a snapshot is written (how: storage/)

periodic            work by the clock: leases that end, probes (health/), ports to open again
leases, liveness    who has been silent for too long, and whether it gives way
sharing             the seam to several balancers with one table; merged: what they hear becomes part of this one's
standby             whether another balancer is to have the floating address
tasks               work that may fail without harm to the rest; steps: long work that lets the loop run
event_log           the last events and refused calls, shared fairly (fair_buffer); event_texts: their sentences
views               what control shows of itself; health_sentence: the condition of all, in words
"""
