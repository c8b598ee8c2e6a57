"""Jobs: work that has an id and outlives connections. A command is a job; so is whatever else runs for a
client.
"""
