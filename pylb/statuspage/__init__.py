"""The status page: its files, the stream of changes, what the stream is made of, and other pylbs.

page         the files (ui/), read once at the start
stream       everything at first, then what changed
peers        other pylbs beside this one, and what each says of its health
records      what it shows, as tables of flat records
timeseries   fifteen minutes of the whole machine, a point per second
"""
