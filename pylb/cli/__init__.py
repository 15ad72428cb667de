"""What a person types. Asks the running pylb over its control socket and prints; decides nothing."""
