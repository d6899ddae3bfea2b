"""Other engines, timed in turns with this package, each in a process of its own: see `worker` for how."""
