"""What agent and server say to each other. Bytes in, values and events out; no sockets, no clock.

`messages` holds the typed documents and control messages, `frames` the binary frames, `session` the state machine of one connection,
`flight` the accounts of the agent's frames over as many connections as they need.
"""
