"""The `legato` command. One of the three places that choose and build things.

Two halves. `dev`, `api` and `worker` are processes of a deployment (what they share is in `cli.serve`); `submit`,
`tail`, `cancel` and `inspect` are a client that talks HTTP to any of them and never to Redis. `sim` and `demo` need
neither.

How a command ends is a number that scripts can use; `cli.exits` has the table, and `legato --help` prints it.
"""
