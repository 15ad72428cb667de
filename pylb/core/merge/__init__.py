"""Several balancers, one table: what each of them knows, decides and writes for the others, as a pure value machine.

pylb/cluster calls it with etcd's bytes; `control` is on the other side of cluster/shared.py. A `Replica` is one balancer's
part. The calls of phone-homes, the verdicts of leases and what etcd reports go in; transactions for etcd, answers and
registrations as they are served come out. tests/core/merge plays three of them against etcd in memory, in any order of
calls, cuts, address moves, restarts, upgrades, restores and forgets.

values      what balancers write for each other; mirror: what is known of etcd's content
replica     one balancer's part; local: what it knows by itself; knowledge: both put together
writing     the transactions, one after the other

Writing
    Each key has one writer, except claims and tombstones, which are compared before they are written. A balancer counts its
    transactions in its member key, and every transaction is compared with it. What a balancer knows of the others is a
    count for each of them, never a time and never a revision of etcd: those go back in a restore, counts do not. An entry
    says what its balancer heard and is written on change only: etcd sees no heartbeats.

What is served
    Any fresh hearer makes a registration fresh. Among what is heard within a lease the highest Pylb-Sequence counts, so a
    late goodbye or an old address does not win; then what was heard here, so phone-homes that reach each balancer over
    another network do not fight; then what was written last. A call with a sequence that is lower than a fresh one is late
    and has no effect. The entries of a balancer that is gone are as fresh as it wrote them for one TTL, then a last resort,
    until it returns or is forgotten. They age only while we are connected.

Releases
    A tombstone carries the counts that its writer knew when the release was called. A balancer that hears the registration
    decides alone: heard before (its sequence, or a transaction that it began after the last call, which the writer knew)
    means that it leaves; otherwise it is on probation, and leaves when its lease ends, unless it is called again. So a
    release that etcd hears of late does not close what was registered since. Entries of a balancer that is away are
    released at once. A tombstone goes when every member has processed it. Releases of others that close more than half of
    all ports within a minute are held back until `accept`.

Claims
    A new name or port is in force when one transaction has written both its entry and its claim. A balancer answers at once
    only for what it has itself written for the owner: an entry that only others wrote may be on its way out. Without etcd,
    what anybody heard of the owner is enough, and a new name or port is unavailable. A claim without a holder may be taken.
    If two owners have one port, by calls without etcd or by a restore, the claim decides, and the other is refused at its
    next call.

Restores
    A balancer whose count in etcd is lower than the one seen before keeps its entries as they were seen, until it has
    written all of them again. Tombstones, claims and forgotten balancers that etcd lost are written again by whoever
    remembers them. A balancer whose own count in etcd is higher than it remembers has an old disk: entries with stamps that
    it does not remember are newer, except for what it was called for since. What it remembers as unwritten and etcd does
    not have is on probation.

Not promised: a registration that no etcd and no other balancer's disk has; and, without sequences, a registration again
while its release is still on its way, on balancers that were not called within its lease.
"""
