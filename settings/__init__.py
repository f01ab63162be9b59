"""Bedrock: the words a user types, and what is said when they are wrong."""
