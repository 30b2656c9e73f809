"""Other wire shapes of the same log, for clients that were not written for Legato."""
