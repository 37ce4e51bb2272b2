"""Runnable examples, one training loop each."""
