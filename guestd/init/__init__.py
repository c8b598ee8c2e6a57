"""`guestd init`: PID 1, standard library only, and as little of that as it can do with."""
