"""From a request for a plan to the message that answers it."""
