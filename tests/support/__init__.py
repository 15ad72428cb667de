"""What several test directories share: the base line after each test, the hand-driven engine, real peers."""
