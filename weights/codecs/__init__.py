"""Codecs: how a model update's tensors become fewer bytes, and arrays again."""
