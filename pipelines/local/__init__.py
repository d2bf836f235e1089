"""Running a compiled pipeline on this machine: supervised, shown, and ended to the last process."""
