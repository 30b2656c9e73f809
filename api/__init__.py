"""HTTP in, streams out. Stateless: every answer comes from the log, so any replica serves any position."""
