"""The faces: the HTTP API, the parser deployment and the Python client."""
