"""The event plane: nodes, messages, availability and failures in simulated time. It never touches a tensor."""
