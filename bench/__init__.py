"""What pylb costs and what it gives, beside the proxies people already run.

`python -m bench` puts one real proxy at a time between a real load generator and a real origin, measures it, stops it,
and takes the next. Reading order: `scenarios` (what is measured), `targets` (who is measured, with which `configs`),
`load` and `endpoints` (who makes the load), `figures` and `report` (what the numbers say). `processes` holds everything
that touches /proc or a signal.

How a number is made, and why it can be believed:

- Interleaved. In every round each target runs once, and the order rotates, so a slow minute hits all of them.
- A ratio is taken inside one round, the median over the ratios; min..max is the spread. A warm-up round is dropped.
- Every sample gets a fresh proxy process, so memory freed by an earlier load cannot hide the cost of the next session.
- Every process, proxy and load alike, has a session of its own: the scheduler's autogroups share the CPU per session.
- As installed: one thread each, no logging anywhere, nginx stream with its defaults, HAProxy without `option
  splice-auto` (the target `haproxy-splice` has it). Only connection limits and idle timeouts are raised.
- All load stays on this machine. On few cores proxy, origin and load share them: read ratios, not absolute figures.
"""
