"""Checks and transforms of the plain text of an answer, between provider and delivery."""
