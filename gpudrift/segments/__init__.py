"""Every value of a segment column scored by itself, against its own reference rows."""
