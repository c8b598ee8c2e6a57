"""Connections passed on: of the guest's programs to the host (relays), and of the host's to the guest's (forwards)."""
