"""A connection: one reader, one writer, channels between them; and the operations a client can ask for."""
