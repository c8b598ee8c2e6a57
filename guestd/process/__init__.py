"""Processes: created in one place (`spawn`), waited for in one place (`reaper`), found and ended as trees
(`tree`).
"""
