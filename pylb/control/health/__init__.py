"""Which servers answer: when each is asked, how, and what the answers mean."""
