"""The HTTP service: a trained run behind FastAPI, with a database of events and added items."""
