"""The server's only state: models, plans, segments and tokens in one folder."""
