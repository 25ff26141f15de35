"""The HTTP server of the API: granian's processes, and in each of them the app, behind complete requests."""
