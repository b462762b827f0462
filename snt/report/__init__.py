"""Reports: what results look like, for the terminal and on disk. Nothing here prints."""
