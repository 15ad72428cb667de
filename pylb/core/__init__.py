"""Values and decisions.

Nothing here does I/O or knows asyncio, sockets, HTTP, YAML or logging; the clock and randomness are arguments.
Every value is frozen: a change makes a new one, so anybody with a reference may go on reading it.
A wrong argument from outside raises `errors.Refused`; a wrong argument from pylb's own code is a bug and raises as one.

Terms         address, server_names, policy, static_rules, registration, announcement, server_set, operator_overrides,
              table
Who may what  auth (tokens and ports), scope (targets), access (clients), conflicts (who holds a port), loops
What changes  ownership (one function for each change), claims (the result), compose (the table of it), table_diff
Time          lease, legacy (the old calls), health (up or down), checks (their notation), rate_limits, token_buckets
A session     balance, session (its life as a table), flow (that of UDP), connect_failures, proxy_protocol, client_hello,
              tcp_info, recorder, log
Tools         codec (values as JSON), strict_json (what calls bring), port_field, persistent_map, text (made safe to show)
"""
