"""The command line: `kingtask`, and the entry points of the two daemons."""
