"""HAProxy's dialect: its config file as pylb.yaml, its runtime socket, its statistics and its exporter's names.

Only cli (`pylb import`), app and upgrade import from here: without this folder pylb still serves. What reads a config opens no
file but in legacy_import, and never raises. What changes who gets a connection or who may connect is translated exactly, or
reported as a difference with file and line.

config_parser   words, variables, conditionals and sections, as HAProxy reads them
translate       frontends with their backends, and what is said about the rest
legacy_import   what the old webhook's script wrote, as legacy registrations
proxies         one section with what it inherits
places          where it listens
clients         who may connect: access lists and conditions as sets of addresses
servers         its servers and their health
health_checks   what a server is asked

runtime_socket  the conversation; commands: what may be said in it; output: servers and sessions in HAProxy's form
view            what commands, CSV and exporter show, made when somebody asks
stats, columns  the rows of `show stat`; info: `show info`
rates           rates, maxima and averages, of the sampler's looks (workers/sampler.py)
exporter        the same numbers under the names of HAProxy's Prometheus exporter
"""
