"""Ways in: listeners, who may connect, and the dialects told apart by their first byte."""
