"""The long-term path's attention: the query's own block and the selected ones."""
