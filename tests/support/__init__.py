"""Helpers for several test directories: the checks after each test, the hand-driven engine, real peers."""
