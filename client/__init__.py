"""First floor: what a client does with a message."""
