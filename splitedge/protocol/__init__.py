"""The protocol between agent and server. Bytes in, values and events out; no sockets, no clock.

`messages` has the documents and control messages, `frames` the binary frames, `session` the state machine of one
connection, and `flight` the accounts of the agent's frames over any number of connections.
"""
