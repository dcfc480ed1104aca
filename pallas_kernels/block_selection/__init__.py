"""The long-term path's choice: score every earlier block, keep the top N."""
