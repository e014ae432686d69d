"""One module a command: its arguments, and the call of what does the work."""
