"""`python -m bench soak`: a real pylb under random streams, random faults and constant changes of the table, for a long time.

Clients and servers are scripted and run here; pylb is a process of its own. It checks that every stream that both ends
finished arrived complete and unchanged, and that any other stream is a prefix that ended with a reset; that idle sessions
survive; and that at the end memory, descriptors and CPU are back where they were, and pylb's counts equal ours.

With --kills pylb has two workers. Workers and main are killed at random and upgrades are made, under a `unit` that restarts
main and keeps its sockets as systemd does. Then only sessions of a killed worker may fail, and only with a reset.

command   the options, and one run from start to verdict        setup     where everything of a run listens
run       the streams, what is sampled, the checks at the end   results   what was done and found, and its summary
streams   the script of a stream, and its verdict               peers     the servers, and clients up to the greeting
changes   calls, reloads and rubbish for the webhook            kills     deaths and upgrades
unit      a small stand-in for systemd
"""
