"""One running pylb: the composition root and its parts.

`app` builds the parts, starts them in order and stops them in reverse; each part is a class of its own that is given what it
needs. `phases` says what a signal means when. Whether this process forwards or workers do is seen in `forwarding` alone.
"""
