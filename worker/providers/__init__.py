"""One file a provider, all of the same inner shape; they know events and nothing of one another."""
