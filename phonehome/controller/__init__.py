"""`phonehome controller`: a phone-home for a whole cluster. Services of type LoadBalancer open ports on every pylb.

Pure, and tested by tables:
    objects      Services and Nodes, reduced to what is read
    service_annotations  what an owner says about a Service
    desired      what pylb should have, computed from Services and Nodes
    belief       how far a list that lacks objects is believed
    work         what to say to one pylb next, and what it has
    sets         the calls to pylb and its answers
    status       what a Service's status should show
    events       which events are due
    pace         how long to wait before the next try
    options      the environment
Threads:
    kube         one call to the API server, one watch
    watch        list and watch of one kind of object
    balancer     one pylb
    reporter     statuses and events
    controller   puts them together
    command      the command line
"""
