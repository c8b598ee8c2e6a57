"""The protocol: frames, channel states, credit, addresses and the maps that travel. Pure: bytes in, events out."""
