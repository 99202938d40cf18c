"""The `reflux` command: all roles on one machine, the live table, results, audit and export."""
