"""One module for each command of `edge-server`. `edge_server.cli` imports a module only when its command is called."""
