"""The backend ``torch``: the whole contract in plain torch operations, on any device."""
