"""HAProxy's dialect: its config file as pylb.yaml, its runtime socket, its statistics and its exporter's names.

Only cli (`pylb import`), app and upgrade import from here; nothing below them knows this dialect. The modules that read a
config never raise, and only legacy_import opens files. A directive that decides who gets a connection or who may connect is
either translated exactly or reported as a difference, with its file and line.

config_parser   words, variables, conditionals and sections, as HAProxy reads them
translate       frontends with their backends, and notes about the rest
legacy_import   what the old webhook's script wrote, as legacy registrations
proxies         one section, together with the `defaults` that it inherits
binds           the addresses and ports where it listens
port_ranges     places that differ in nothing but their ports, as one frontend
clients         which clients may connect: access lists and conditions as sets of addresses
server_names    which of these conditions become routes by server name
servers         its servers and their health
health_checks   the questions of a health check

runtime_socket  the connection and its lines; commands: the commands; output: servers and sessions in HAProxy's form
view            the data that commands, CSV and exporter show, made at each request
stats, columns  the rows of `show stat`; info: `show info`
rates           rates, maxima and averages, computed from the sampler's readings (workers/sampler.py)
exporter        the same numbers under the names of HAProxy's Prometheus exporter
"""
