"""Mistakes of users: a table of commands that cannot work, what must be said of each, and a fix that works."""
