"""The protocol with sockets: `client` dials and streams frames, `listen` serves them, `http` asks for plans and segments."""
