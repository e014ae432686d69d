"""Files of others and the archive of record: what is read, what is refused and why."""
