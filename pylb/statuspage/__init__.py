"""The status page: its files, the stream of changes, and the records and time series that the stream is made of."""
