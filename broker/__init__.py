"""The core: values, keys, scripts, the log, the queue and the tail. The only code that talks to Redis."""
