"""One module a command: its arguments, and the call of what does the work.

Tested in tests/integration/test_readme.py, and in the tests of what they call.
"""
