"""The command line: ``stare <command>``. Each command lives in its own module and is imported only when it is asked for."""
