"""Several processes as one: who a process is, when all stop, what a rank's memory holds."""
