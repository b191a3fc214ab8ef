"""The five published methods, and the baseline they are all compared with."""
