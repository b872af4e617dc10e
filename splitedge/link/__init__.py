"""The protocol with sockets.

`stream_client` and `stream_server` are the two ends of the frame stream, and `connection` is what both run.
`http_client` requests plans and segments, `http_server` is what listeners share. `adaptation` and `controllers` choose
the codec of each frame from the `estimate` of the link.
"""
