"""The `legato` command. One of the three places that choose and build things."""
