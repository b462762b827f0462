"""The built-in judges, one file each, found through the entry-point group `snt.judges`."""
