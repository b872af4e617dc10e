"""The server's state on disk: tokens, plans, patterns, bundles and segments."""
