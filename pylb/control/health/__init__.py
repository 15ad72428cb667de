"""Which servers answer: when each is asked, how, and what the answers mean.

checker    when each is asked and what follows; schedule: the budget of questions per second
prober     the questions themselves, over the network
records    what is known about each server and each address; nothing is asked here
resolver   host names of static servers
dry_run    whose servers would go out, for `pylb plan` and `pylb doctor`
"""
