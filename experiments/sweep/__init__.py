"""Trains the rows of a table with several seeds, and says which differences are more than noise."""
