"""The status page: its files, the stream of changes, and what the stream is made of.

page         the files (ui/), read once at the start
stream       everything at first, then what changed
records      what it shows, as tables of flat records
timeseries   fifteen minutes of the whole machine, a point per second
"""
