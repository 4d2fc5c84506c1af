"""Links, bandwidth and messages: when what is sent arrives."""
