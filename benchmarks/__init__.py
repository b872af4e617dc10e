"""One script for each published table. Nothing imports this package."""
