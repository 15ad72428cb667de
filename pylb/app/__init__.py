"""One running pylb: the composition root and its parts.

`app` builds the parts, starts them in order and stops them in reverse; each part is a class that is given what it needs.
`phases` says what a signal means in each phase. Only `forwarding` knows whether this process forwards or workers do.
"""
