"""Files and whole trees as streams, for both ends: the guest's file process and guestctl. Standard library only."""
