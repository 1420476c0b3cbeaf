"""The tables of the report, one a file."""
