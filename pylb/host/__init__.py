"""The kernel and systemd: what this machine is, and what it reports. Nothing here knows about frontends or registrations.

machine        its addresses, its limits, our identity on it; addresses: followed while pylb runs
systemd        what pylb reports to it
files          files whose changes count without a reload
loop_lag       how late the loop is, and how rarely the garbage collector delays it
process_stat   the reader of /proc/PID/stat
"""
