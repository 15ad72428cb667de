"""One running pylb: the composition root, its phases, its settings."""
