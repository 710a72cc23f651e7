"""The command line: parsing, help, error reporting and exit codes."""
