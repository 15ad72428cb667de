"""The only code that touches a client's bytes.

One engine owns one edge-triggered epoll and everything registered in it. It imports no asyncio and reads no config.
Outcomes are values here, not exceptions. Whoever opens a descriptor closes it. This package never imports control.

engine       the epoll, the ports of the table in force, the sessions; run_queue: one turn, and the budget that all share
listener     ports that accept while there is room; admission: access list, limits per source, PROXY header
hellos       a session on a port with routes, until its ClientHello says which one; routes: those of all ports
dial         a session until a server has accepted it; wait_queue: while all servers are full
lifecycle    from accept to the last close: transitions of core/session become system calls; session: the data
relay        the hot path: bytes from one half to the other; pipes: the pipes for splice; sockets: options, addresses, closing
timers       idle, drain and keep-alive by periodic visits; deadlines: the short ones of a session; live_sessions: where each is
accounts     what is counted and recorded of a session; counters: the plain integers
flows        UDP: all flows of an engine; datagrams: its hot path; homes: a flow's server; flow, flow_sweep, datagram_port,
             datagram_sockets: the data, the ends by silence, the ports, the options; flow_handover, passed_flows: from one
             pylb to the next. Loaded by the first frontend of UDP
faults       boundaries: a fault costs the session, port or call in which it happened

live, watched              live sessions for whoever asks; other descriptors in the engine's epoll
shared_limits, source_share, own_dials    limits that hold over all workers, a fair share for each source, dials that come back
linger, proxy_header       when a socket towards a server is armed for a reset; the PROXY header that it gets first
"""
