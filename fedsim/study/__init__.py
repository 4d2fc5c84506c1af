"""Studies: many runs of one experiment that differ in what is written down, and what they say together."""
