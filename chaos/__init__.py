"""The chaos suite: real processes, real clients, a seeded schedule of faults, and checks that no character is lost.

It treats Legato as a black box: it starts `api` and `worker` as processes, speaks HTTP to them, and looks into Redis
only to break it and to read the finished logs. It must never touch a store that holds anything of value: it starts its
own.
"""
