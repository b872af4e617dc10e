"""One module for each command of `edge-agent`. `edge_agent.cli` imports a module only when its command is called."""
