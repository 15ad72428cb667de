"""haproxy.cfg as pylb.yaml. Only `pylb import` uses it: delete the folder and pylb still serves.

What changes who gets a connection or who may connect is translated exactly, or reported as a difference with file and line.
Nothing here raises, opens a file or looks at the network.

config_parser  words, variables, conditionals and sections, as HAProxy reads them
translate      frontends with their backends, and what is said about the rest
proxies        one section with what it inherits
places         where it listens
clients        who may connect: access lists and conditions as sets of addresses
servers        its servers and their health
health_checks  what a server is asked
"""
